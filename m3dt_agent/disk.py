"""Writes files and folders whole or not at all, and holds locks: every atomic writer of the project is here.

    whole_file, write_file     a temporary name beside it (.writing-xxxxxxxx), flushed, renamed
    scratch_folder + publish   a new folder: built in a scratch folder, flushed, renamed
    replace_folder             the same in place of an older folder, which comes back if the second rename fails

    <parent>/.writing-xxxxxxxx/      a scratch folder: hidden, so that Minari does not list it; its user holds the lock
        lock
        inner/                       what is being built

A kill leaves at most a hidden temporary file or scratch folder. The next writer in the same parent removes scratch folders
that nobody holds locked. A full disk is a `DiskSpaceError` that names what was being written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import BankError, DiskSpaceError, M3DTError, PathError

TEMPORARY = ".writing-"
"""How the names of unfinished files and folders begin."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_space_errors(target: Path) -> Iterator[None]:
    """Turns "no space left", "quota exceeded" and "file too large" inside the block into a `DiskSpaceError` naming `target`.

    HDF5 gives the errno only in the message of the errors it raises, so the message is searched too.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        known = getattr(error, "errno", None) in _NO_ROOM
        if known or any(f"errno = {number}," in str(error) for number in _NO_ROOM):
            raise DiskSpaceError(f"no room left on the disk while writing {target}: {error}") from error
        raise


_ADVICE = {
    errno.ENOENT: "there is nothing here; check the path",
    errno.EACCES: "you have no permission; change its owner or mode, or name another path",
    errno.EPERM: "you have no permission; change its owner or mode, or name another path",
    errno.EROFS: "the file system is read-only; name a path on another one",
    errno.EEXIST: "there is a file or folder of this name; move it away, or name another path",
    errno.ENOTEMPTY: "there is a folder of this name that is not empty; move it away, or name another path",
    errno.ENOTDIR: "there is a file where a folder should be; move it away, or name another path",
    errno.EISDIR: "there is a folder where a file should be; move it away, or name another path",
    errno.ELOOP: "it is a symbolic link to itself, or one that must not be followed; name the file itself",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
    errno.EBUSY: "it is in use; wait for the program that uses it, or stop it",
    errno.ETXTBSY: "it is in use; wait for the program that uses it, or stop it",
    errno.EXDEV: "it is on another file system; name a folder on the same one",
}


@contextlib.contextmanager
def path_errors(target: Path | str) -> Iterator[None]:
    """Turns what the file system refuses inside the block into a `PathError` that names the path and says what to do.

    The path is the one that the system names, else `target`. A full disk is a `DiskSpaceError`, as in `disk_space_errors`.
    Errors of this package pass as they are, and so do closed pipes and lost connections, which are no path's fault.
    """
    try:
        with disk_space_errors(Path(target)):
            yield
    except (M3DTError, ConnectionError, TimeoutError):
        raise
    except OSError as error:
        path = error.filename2 or error.filename or target
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else target
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise PathError(f"{path} cannot be used: {advice}") from error
    except ValueError as error:  # what no file system takes: a NUL, half of a surrogate pair
        if isinstance(error, UnicodeEncodeError) or "null byte" in str(error) or "null character" in str(error):
            raise PathError(f"{str(target)!r} cannot be used: no path may hold such a character; name another path") from error
        raise


def user_path(path: Path | str) -> Path:
    """The path that a user named: `~` and `~name` at its beginning stand for home folders.

    Raises:
        PathError: there is no such home folder, or the path holds a character that no path may hold.
    """
    with path_errors(path):
        os.fspath(path).encode()
        if "\0" in os.fspath(path):
            raise ValueError("embedded null byte")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PathError(f"{path} cannot be used: no home folder is known for it; write the path in full") from error


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Links are followed: the Hub's cache is made of them.

    Raises:
        PathError: it is missing, cannot be read, or is a folder, a pipe, a device or a socket, which could block or never end.
    """
    with path_errors(path):
        if not stat.S_ISREG(path.stat().st_mode):  # first of all, since opening a device can do something to it
            raise _not_regular(path)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise _not_regular(path)
        return file


def _not_regular(path: Path) -> PathError:
    what = "a folder" if path.is_dir() else "a pipe, a device or a socket"
    return PathError(f"{path} cannot be used: it is {what}; a regular file is needed")


def require_space(target: Path, n_bytes: int) -> None:
    """Checks that the disk of the existing folder `target` has `n_bytes` free.

    Raises:
        DiskSpaceError: it has not.
    """
    free = shutil.disk_usage(target).free
    if free < n_bytes:
        raise DiskSpaceError(f"{target} needs {n_bytes / 1e6:,.1f} MB; {free / 1e6:,.1f} MB are free there")


def require_new_folder(path: Path) -> None:
    """Checks that `path` does not exist or is an empty folder, so that a bank can be saved there.

    Raises:
        BankError: there is something at `path`.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise BankError(f"{path} exists and is not an empty folder; choose a new one")


# -- files ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with the same suffix; what the block writes there becomes `path` when it ends.

    If the block raises, the temporary file is removed and `path` is as before.

    Raises:
        DiskSpaceError: no room.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    with disk_space_errors(path):
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a small file whole or not at all; text as UTF-8, its line ends unchanged.

    Raises:
        DiskSpaceError: no room; `path` is as before.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Waits until a file's content, or the renames made in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds a lock against other processes and threads inside the block, and waits for it first. Creates the file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- folders -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Gives an empty folder inside a new, locked scratch folder of `parent`. Both are removed when the block ends or raises."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
    try:
        with _locked(scratch):
            inner = scratch / "inner"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(built: Path, target: Path) -> None:
    """Flushes the folder `built` and renames it to `target`, which must not exist or be an empty folder."""
    _flush_all(built)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(built, target)
    flush(target.parent)


def replace_folder(built: Path, target: Path) -> None:
    """Flushes the folder `built` and puts it in the place of `target`; the old content is then deleted.

    `target` need not exist. If the new folder cannot be moved there, the old one comes back; meanwhile it lies beside `built`,
    which must therefore be on the same file system and in a folder that nobody else uses.
    """
    if not target.exists():
        publish(built, target)
        return
    _flush_all(built)
    replaced = built.with_name(f"{built.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)  # what an earlier kill left behind
    os.rename(target, replaced)
    try:
        os.rename(built, target)
    except BaseException:
        os.rename(replaced, target)
        raise
    flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)


@contextlib.contextmanager
def _locked(scratch: Path) -> Iterator[None]:
    with (scratch / "unlocked").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (scratch / "unlocked").rename(scratch / "lock")  # so a file called "lock" is always locked while its owner lives
        yield


def _remove_abandoned(parent: Path) -> None:
    for scratch in parent.glob(TEMPORARY + "*/"):
        with contextlib.suppress(OSError), (scratch / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)
