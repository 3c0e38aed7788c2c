"""What operating systems do differently: locks between processes, reads at a position, flushing to disk.

                    Linux, macOS                         Windows
    locked          flock on the file or folder itself   filelock on a file; a folder's lies in the temporary folder, and
                                                         holders that share wait for each other
    read_at         pread                                seek and read under a lock
    flush           fsync                                fsync; folders need none
    reserve         posix_fallocate; macOS writes zeros  zeros

A lock ends with its process, however that ends. Locking a folder writes nothing into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_SEEKING = threading.Lock()
_ZEROS = 1 << 20


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True, create: bool = False) -> Iterator[bool]:
    """Holds a lock on a file or folder inside the block, against other processes and threads; gives whether it is held.

    It is always held if `wait`. shared: beside others that share; they keep out only those that do not. create: make the file
    first, if there is none; a symbolic link in its place is not followed.

    Raises:
        OSError: the file or folder cannot be opened.
    """
    file = _folders_lock(path) if fcntl is None and path.is_dir() else path
    flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW if create or file != path else os.O_RDONLY
    descriptor = os.open(file, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        yield lock_open_file(descriptor, shared=shared, wait=wait)
    finally:
        os.close(descriptor)


def _folders_lock(folder: Path) -> Path:
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return Path(tempfile.gettempdir()) / f"m3dt-{key[:32]}.lock"


def lock_open_file(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Locks an open file as `locked` does, until it is closed; gives whether it is locked."""
    if fcntl is None:
        from filelock import lock_descriptor

        return lock_descriptor(descriptor, blocking=wait)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset` of an open file, fewer where it ends. Any thread may call it."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def reserve(descriptor: int, size: int) -> None:
    """Gives an empty open file `size` zero bytes that are on disk, so that a full disk is an error now and not a SIGBUS later.

    Raises:
        OSError: no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, _ZEROS):  # macOS
        left = memoryview(bytes(min(_ZEROS, size - start)))
        while left:
            left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)


def memory_bytes() -> int:
    """The memory of this machine, used or not; a terabyte where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 40


def user_id() -> int:
    """The number of this process's user, who owns what it writes; 0 on Windows, which owns files by other means."""
    return os.getuid() if hasattr(os, "getuid") else 0


def flush(path: Path) -> None:
    """Waits until a file's content, or the renames made in a folder, would survive a power failure."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
