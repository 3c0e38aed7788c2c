"""Watches one process while it reads a stranger's bytes: which files it opens and changes, whom it calls, what it runs.

An audit hook sees what Python does (files, processes, sockets); what C libraries open, the parent hears through inotify. Writes
outside the sandbox are stopped, not only noted: a reader that is wrong must not harm the machine that tests it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

HARMLESS_DEVICES = {"/dev/null", "/dev/urandom", "/dev/random", "/dev/tty"}
LOOPBACK = {"127.0.0.1", "localhost", "::1", "", None}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
}
"""Audit events that change files: where among their arguments the path is, and the open folder that it is relative to."""
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn", "pickle.find_class")
"""Audit events of running other programs, or of looking up what a pickle names."""


class TooSlowError(BaseException):
    """The time of an input is over. No reader's `except Exception` may catch it."""


class OutsideError(PermissionError):
    """A reader tried to change something outside the sandbox; it was stopped."""


class Guard:
    """Notes in `seen` what happens between `arm` and `disarm`.

    box: the only folder that may be changed. base: the folder around it, of which nothing else may be read.
    """

    def __init__(self, base: Path, box: Path) -> None:
        self.base, self.box = os.path.realpath(base), os.path.realpath(box)
        self.seen: list[str] = []
        self._armed = False
        self._local = threading.local()
        sys.addaudithook(self._hook)

    def arm(self) -> None:
        self.seen.clear()
        self._armed = True

    def disarm(self) -> list[str]:
        self._armed = False
        return sorted(set(self.seen))

    def _hook(self, event: str, arguments: Sequence[Any]) -> None:
        if not self._armed or getattr(self._local, "busy", False):
            return
        self._local.busy = True  # looking at a path raises events of its own
        try:
            self._look(event, arguments)
        finally:
            self._local.busy = False

    def _look(self, event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            self._opened(*arguments)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._changed(event, _under(arguments[path], -1 if folder is None else arguments[folder]))
        elif event in RUNS:
            self.seen.append(f"runs: {event} {arguments[:2]!r}"[:200])
        elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in LOOPBACK:
            self._stop(f"network: connects to {arguments[1]!r}")
        elif event == "socket.getaddrinfo" and arguments[0] not in (*LOOPBACK, b"127.0.0.1", b"localhost"):
            self._stop(f"network: looks up {arguments[0]!r}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        flags = flags or 0
        real = _resolved(path, follow=not flags & os.O_NOFOLLOW)
        if flags & WRITING or (isinstance(mode, str) and set(mode) & set("wax+")):
            self._changed("open for writing", path, follow=not flags & os.O_NOFOLLOW)
        elif _inside(real, self.base) and not _inside(real, self.box):
            self.seen.append(f"outside: reads {real}")
        elif real.startswith("/dev/") and real not in HARMLESS_DEVICES and not real.startswith("/dev/shm/"):
            self.seen.append(f"outside: opens {real}")

    def _changed(self, event: str, path: Any, follow: bool = False) -> None:
        if isinstance(path, int):
            return
        real = _resolved(path, follow=follow)
        if not _inside(real, self.box) and real not in HARMLESS_DEVICES and not real.startswith("/dev/shm/"):
            self._stop(f"outside: {event} {real}")

    def _stop(self, what: str) -> None:
        self.seen.append(what[:300])
        raise OutsideError(what)


def _under(path: Any, folder: int) -> Any:
    """A path that may be relative to a folder that is open as the descriptor `folder` (-1: to none)."""
    if isinstance(path, int) or folder < 0:
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))


def _resolved(path: Any, *, follow: bool) -> str:
    """The path with its links followed; of what is removed or renamed, the last part is not."""
    text = os.path.abspath(os.fsdecode(path).replace("\0", "␀"))
    return os.path.realpath(text) if follow else os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def limit_memory(more: int) -> None:
    """Lets the process map `more` bytes besides what it has mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def no_memory(error: BaseException | None) -> str:
    """What an error says about memory that could not be had, if that is what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        if isinstance(error, MemoryError) or "can't allocate memory" in text or "Unable to allocate" in text:
            return f"{type(error).__name__}: {text}"
        error = error.__cause__ or error.__context__
    return ""


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size (proc(5))


def peak_mb() -> float:
    """The largest resident size since `reset_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6


def start_clock(seconds: float) -> None:
    """Raises `TooSlowError` after so many seconds; 0 stops the clock."""
    signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _too_slow(_: int, frame: FrameType | None) -> None:
    where = "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    raise TooSlowError(where)
