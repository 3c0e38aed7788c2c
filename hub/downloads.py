"""One file on its way from a Hub to the disk: no longer than listed, hashed while it arrives, continued after a cut.

listed size and hash ──► GET, from where the last one was cut ──► a new file of ours ──► the same size and hash, or an error
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

from m3dt_agent.errors import HubError
from m3dt_agent.hub.failures import ATTEMPTS, is_transient, pause
from m3dt_agent.hub.snapshots import RemoteFile
from m3dt_agent.hub.transport import Transport

_PROGRESS = 1 << 20  # bytes after which tries are counted anew


class DamagedError(HubError):
    """What arrived is not the file that was listed."""


def download(
    transport: Transport, url: str, listed: RemoteFile, target: Path, advance: Callable[[int], object] = lambda _: None
) -> None:
    """Writes the file at `url` to `target`, where nothing may be yet. If it raises, `target` may hold a part of it.

    advance: is told of every so many bytes; of a negative number if they have to come once more.

    Raises:
        DamagedError: the bytes are not those of `listed`; more than its size is never written.
        HubError, StalledError, OSError: and whatever huggingface_hub and its client raise, when all tries are used up.
    """
    with target.open("xb") as file:
        arriving = _Arriving(transport, url, listed, file, advance)
        tries, counted = 0, 0
        while True:
            try:
                arriving.go_on()
                break
            except Exception as error:
                if arriving.size - counted >= _PROGRESS:
                    tries, counted = 0, arriving.size
                tries += 1
                if tries >= ATTEMPTS or not is_transient(error):
                    raise
                pause(tries - 1, error)
    arriving.finish()


class _Arriving:
    """The bytes of one file so far."""

    def __init__(
        self, transport: Transport, url: str, listed: RemoteFile, file: IO[bytes], advance: Callable[[int], object]
    ) -> None:
        self._transport, self._url, self._listed, self._file, self._advance = transport, url, listed, file, advance
        self.size, self._digest = 0, listed.new_digest()

    def _begin(self) -> None:
        self._advance(-self.size)
        self._file.seek(0)
        self._file.truncate()
        self.size, self._digest = 0, self._listed.new_digest()

    def go_on(self) -> None:
        """Takes what the server sends from here on, until it ends."""
        with self._transport.stream(self._url, self.size) as answer:
            if answer.first == 0:  # the server sends all of it, as it may
                self._begin()
            elif answer.first != self.size:
                raise DamagedError(f"the part from byte {self.size:,} was asked for; that from {answer.first:,} is sent")
            self._require_room(answer.length or 0)
            for chunk in answer.chunks:
                self._require_room(len(chunk))
                self._file.write(chunk)
                self._digest.update(chunk)
                self.size += len(chunk)
                self._advance(len(chunk))

    def _require_room(self, more: int) -> None:
        if self.size + more > self._listed.size:
            raise DamagedError(f"more bytes are sent than the {self._listed.size:,} that are listed")

    def finish(self) -> None:
        """Compares what arrived with what was listed."""
        if self.size != self._listed.size:
            raise DamagedError(f"{self.size:,} bytes arrived of the {self._listed.size:,} that are listed")
        if self._digest.hexdigest() != self._listed.key:
            raise DamagedError("the bytes that arrived have another hash than the one that is listed")
