"""Rows that are on disk as soon as their episodes end, so that an evaluation that is killed loses none of them.

    opened    the file is locked and read: every row must be one of this protocol       ─► which episodes are there already
    add       an episode ended: its row becomes a line at the end of the file, in one write
    finish    all episodes are there: the file is put in order (task, seed), whole or not at all

The file may hold other episodes of the same protocol: more seeds, or the tasks of another shard that was run before. One
process at a time writes it; a second one is refused. Without a file, rows are kept in memory only.

If the disk is full while episodes end, the evaluation goes on; every later row tries again to write what is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DatasetError, M3DTError, PathError, UnwrittenRowsError
from ..scores.rows import EpisodeResult, line_of, lines_of, row_of
from ..system.disk import path_errors, user_path, write_file
from ..system.platforms import lock_open_file
from .schedule import Episode

log = logging.getLogger(__name__)

_LINE_START = b'{"bank_hash": '
_ELSEWHERE = "the file is left as it is; name another one, or move this one away"


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the rows of one file have in common. versions: None where the episodes run on machines that may have others.

    settings: rows may have more than these.
    """

    policy: str
    bank_hash: str
    stop_on_success: bool
    settings: Mapping[str, str]
    versions: Mapping[str, str] | None

    def difference(self, row: EpisodeResult) -> str | None:
        """What makes `row` one of another protocol, for a message; None if nothing does."""
        pairs = [(name, getattr(row, name), getattr(self, name)) for name in ("policy", "bank_hash", "stop_on_success")]
        pairs += [(name, row.settings.get(name), value) for name, value in self.settings.items()]
        if self.versions is not None:
            names = sorted({*self.versions, *row.versions})
            pairs += [(f"version of {name}", row.versions.get(name), self.versions.get(name)) for name in names]
        for name, there, here in pairs:
            if there != here:
                return f"{name} {there!r} there, {here!r} here"
        return None


class KeptRows:
    """The rows of an evaluation that asks for `episodes`; `keep_rows` makes it. file: the open file; None: memory only."""

    def __init__(self, episodes: Sequence[Episode], file: _RowFile | None) -> None:
        self._asked = [(episode.task.name, episode.seed) for episode in episodes]
        self._file = file
        self._rows = {} if file is None else file.rows

    def __contains__(self, episode: Episode) -> bool:
        return (episode.task.name, episode.seed) in self._rows

    @property
    def ended(self) -> int:
        """How many of the episodes asked for are there."""
        return sum(key in self._rows for key in self._asked)

    def add(self, row: EpisodeResult) -> bool:
        """Keeps the row of an episode that ended; gives False if there was one, which stays."""
        if (key := (row.task, row.seed)) in self._rows:
            if self._rows[key] != row:
                log.warning("%s, seed %d: played again, the episode differs from its row, which is kept", *key)
            return False
        if self._file is None:
            self._rows[key] = row
        else:
            self._file.append(row)
        return True

    def finish(self) -> list[EpisodeResult]:
        """Puts the file in order and returns the rows of the episodes asked for, in the order in which they were asked.

        Raises:
            UnwrittenRowsError: rows are missing in the file; the error has those that would have been returned.
        """
        rows = [self._rows[key] for key in self._asked]
        if self._file is not None:
            try:
                self._file.finish()
            except M3DTError as error:
                raise UnwrittenRowsError(f"the evaluation is done, but rows could not be written: {error}", rows) from error
        return rows


@contextlib.contextmanager
def keep_rows(path: str | Path | None, protocol: Protocol, episodes: Sequence[Episode]) -> Iterator[KeptRows]:
    """Opens the file `path`, or makes it, for the rows of `episodes`. None: they are kept in memory.

    An error or an interrupt inside the block gets a note that says how many rows the file has.

    Raises:
        PathError: `path` cannot be read and written. DatasetError: it holds something else than rows.
        ConfigError: it holds rows of another protocol, or another process writes it. In all cases it stays as it was.
    """
    if path is None:
        yield KeptRows(episodes, None)
        return
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"rows must be a path or None; got {path!r:.100}")
    with _opened(user_path(path)) as file:
        file.read(protocol)
        kept = KeptRows(episodes, file)
        try:
            yield kept
        except BaseException as error:
            file.flush()
            there = kept.ended - file.unwritten
            if there or isinstance(error, KeyboardInterrupt):
                error.add_note(f"{there} of {len(episodes)} episodes are in {path}; run the same again to continue from there")
            raise


class _RowFile:
    """A locked file of rows. rows: those in it and those that were appended, by task and seed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.rows: dict[tuple[str, int], EpisodeResult] = {}
        self._written = self._size = 0  # the first rows, which are in the file, and the bytes they take
        self._told = False

    def read(self, protocol: Protocol) -> None:
        """Reads and checks the rows; repairs a last line that was cut short.

        Raises:
            DatasetError, ConfigError: as `keep_rows`.
        """
        position, cut, unended = 0, False, False
        for number, line in enumerate(lines_of(self._path), 1):
            where = f"{self._path}, line {number}"
            try:
                row = row_of(line, where)
            except DatasetError as error:
                if not _is_cut_short(line, number):
                    raise DatasetError(f"{error}; {_ELSEWHERE}") from error
                log.warning("%s: the last line was cut short and is dropped; its episode is played again", self._path)
                cut = True
                break
            if (difference := protocol.difference(row)) is not None:
                raise ConfigError(f"{where} is a row of another evaluation: {difference}; {_ELSEWHERE}")
            if self.rows.setdefault((row.task, row.seed), row) != row:
                raise DatasetError(f"{where} contradicts an earlier row of {row.task}, seed {row.seed}; {_ELSEWHERE}")
            position, unended = position + len(line), not line.endswith(b"\n")
        with path_errors(self._path):
            if cut:
                os.ftruncate(self._descriptor, position)
            if unended:
                os.write(self._descriptor, b"\n")
            self._written, self._size = len(self.rows), os.fstat(self._descriptor).st_size

    @property
    def unwritten(self) -> int:
        """How many rows are not in the file yet."""
        return len(self.rows) - self._written

    def append(self, row: EpisodeResult) -> None:
        """Writes the row at the end of the file; what cannot be written waits for the next call."""
        self.rows[(row.task, row.seed)] = row
        self.flush()

    def flush(self) -> None:
        """Tries to write the rows that wait, all or none."""
        try:
            with path_errors(self._path):
                self._write()
        except M3DTError as error:
            if not self._told:
                log.warning("a row could not be written, the evaluation goes on: %s", error)
            self._told = True

    def _write(self) -> None:
        """Brings the file to all rows, also after an interrupt in the middle of an earlier call."""
        if os.fstat(self._descriptor).st_size > self._size:
            os.ftruncate(self._descriptor, self._size)
        count = len(self.rows)
        lines = b"".join(map(line_of, itertools.islice(self.rows.values(), self._written, count)))
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._written, self._size = count, self._size + len(lines)

    def finish(self) -> None:
        """Puts the rows in order, in a new file that takes the place of the old one; nothing is done if they are in order.

        Raises:
            M3DTError: rows are missing in the file.
        """
        ordered = sorted(self.rows.values(), key=lambda row: row.order)
        there = _is_at(self._descriptor, self._path)
        if not there and self._path.exists():
            raise PathError(f"{self._path} was replaced by another file while episodes were played")
        if there and not self.unwritten and list(self.rows.values()) == ordered:
            return
        try:
            with path_errors(self._path):
                write_file(self._path, b"".join(map(line_of, ordered)))
        except M3DTError as error:
            if self.unwritten or not there:
                raise
            log.warning("%s has all rows, in the order in which episodes ended: %s", self._path, error)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_RowFile]:
    """Opens and locks the file; one that is still empty when the block ends is removed.

    Raises:
        PathError: it cannot be read and written. ConfigError: another process writes it.
    """
    with path_errors(path):
        path = Path(os.path.realpath(path))  # a link stays a link when the file takes its place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise PathError(f"{path} cannot be used: it is no regular file; name another one for the rows")
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _lock(descriptor, path)
        try:
            yield _RowFile(path, descriptor)
        finally:
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_size:
                    os.fsync(descriptor)
                elif _is_at(descriptor, path):
                    path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    busy = f"{path} is being written by another evaluation; wait for its end, or give each its own file and join them"
    with path_errors(path):
        locked = lock_open_file(descriptor, wait=False)
    if not locked or not _is_at(descriptor, path):  # or its writer has just put it in order, or removed it
        raise ConfigError(busy)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _is_cut_short(line: bytes, number: int) -> bool:
    """Whether a line is what a power failure or a full disk leaves of a row."""
    if line.endswith(b"\n"):
        return False
    return line.startswith(_LINE_START) or (number > 1 and (_LINE_START.startswith(line) or not line.strip(b"\0")))
