"""Whole folders or nothing: build in a scratch folder, flush it to disk, rename it into place.

    <parent>/.writing-xxxxxxxx/      hidden (Minari's listing skips it), locked by the process that builds in it
        lock
        …what is being built…        → os.rename → its final name, in one step

A kill leaves at most a hidden scratch folder, which the next writer in the same parent removes (nobody holds its lock). A full
disk is a `DiskSpaceError` that names what was being written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import DiskSpaceError

_PREFIX = ".writing-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_space_errors(target: Path) -> Iterator[None]:
    """Turns "no space left", "quota exceeded" and "file too large" inside the block into a `DiskSpaceError` naming `target`.

    HDF5 hides errno in the message of whatever it raises, so the message is searched too.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        known = getattr(error, "errno", None) in _NO_ROOM
        if known or any(f"errno = {number}," in str(error) for number in _NO_ROOM):
            raise DiskSpaceError(f"no room left on the disk while writing {target}: {error}") from error
        raise


def require_space(target: Path, n_bytes: int) -> None:
    """Checks, before anything is written, that `n_bytes` fit where `target` will be.

    Raises:
        DiskSpaceError: they do not.
    """
    free = shutil.disk_usage(target).free
    if free < n_bytes:
        raise DiskSpaceError(f"{target} needs {n_bytes / 1e6:,.1f} MB; {free / 1e6:,.1f} MB are free there")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A fresh, empty folder inside a locked scratch folder of `parent`; both are gone when the block ends, however it ends."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with _locked(scratch):
            inner = scratch / "inner"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds the lock of the file `path`, made if need be, against other processes and threads; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def publish(built: Path, target: Path) -> None:
    """Flushes the folder `built` to disk and renames it to `target`, which must not exist or be an empty folder."""
    for path in (*built.rglob("*"), built):
        flush(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(built, target)
    flush(target.parent)


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file whole: temporary file, fsync, rename."""
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide the file from others who share the folder
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Makes a file's bytes, or the renames done in a folder, last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(scratch: Path) -> Iterator[None]:
    with (scratch / "unlocked").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (scratch / "unlocked").rename(scratch / "lock")  # never there under this name without being locked
        yield


def _remove_abandoned(parent: Path) -> None:
    for scratch in parent.glob(_PREFIX + "*/"):
        with contextlib.suppress(OSError), (scratch / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file whole: temporary name, flush, rename, flush of the folder.

    Raises:
        DiskSpaceError: no room; `path` is as before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with disk_space_errors(path), temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)
