"""Writes files and folders whole or not at all, and says in one line what a path cannot be used for.

    whole_file, write_file     a temporary name beside it (.writing-xxxxxxxx), flushed, renamed
    scratch_folder + publish   a new folder: built in a scratch folder, flushed, renamed
    replace_folder             the same in place of an older folder, which lies beside it as .replaced-<name> meanwhile

    <parent>/.writing-xxxxxxxx/      a scratch folder: hidden, so that Minari does not list it; its user holds the lock
        lock
        inner/                       what is being built

A kill leaves at most a hidden temporary file or scratch folder. The next writer in the same parent removes scratch folders
that nobody holds locked. A folder that was being replaced comes back with `restore_replaced`. A full disk is a `DiskSpaceError`
that names what was being written, and any other refusal of the file system a `PathError` (`path_errors`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import BankError, DiskSpaceError, M3DTError, PathError
from .platforms import flush, locked

TEMPORARY = ".writing-"
"""How the names of unfinished files and folders begin."""
_REPLACED = ".replaced-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_space_errors(target: Path) -> Iterator[None]:
    """Turns "no space left", "quota exceeded" and "file too large" inside the block into a `DiskSpaceError` naming `target`.

    HDF5 gives the errno only in the message of the errors it raises, so the message is searched too.
    """
    try:
        yield
    except M3DTError:  # which names what was being written already
        raise
    except (OSError, RuntimeError) as error:
        known = getattr(error, "errno", None) in _NO_ROOM
        if known or any(f"errno = {number}," in str(error) for number in _NO_ROOM):
            reason = " ".join(str(error).split())  # HDF5's has several lines
            raise DiskSpaceError(f"no room left on the disk while writing {target}: {reason}") from error
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
        if b"\0" in os.fsencode(path):
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


def own_path(folder: Path, name: str) -> Path:
    """The path of `name` inside `folder`, for something that is to be written there.

    Raises:
        PathError: a part of it is a symbolic link, through which the writer would leave the folder.
    """
    path = folder
    for part in Path(name).parts:
        path /= part
        if path.is_symlink():
            raise PathError(f"{path} cannot be used: it is a symbolic link, and nothing is written through one; remove it")
    return path


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
        BankError: there is something at `path`. PathError: it cannot be looked at.
    """
    with path_errors(path):
        if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise BankError(f"{path} exists and is not an empty folder; choose a new one")


def require_writable(path: Path) -> None:
    """Checks that a file can be written at `path`, whose folder is made; for callers about to do something long before.

    Raises:
        PathError: it cannot.
    """
    with path_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=TEMPORARY, dir=path.parent):
            pass


# -- files ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with the same suffix; what the block writes there becomes `path` when it ends.

    If the block raises, the temporary file is removed and `path` is as before.

    Raises:
        DiskSpaceError: no room. PathError: nothing can be written there.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    with path_errors(path):
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
        DiskSpaceError: no room. PathError: nothing can be written there. In either case `path` is as before.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock against other processes and threads inside the block; gives whether it is held. Creates the file `path`.

    wait: until it is held; without, the block runs at once and must look.

    Raises:
        PathError: the file cannot be made, or is a symbolic link.
    """
    with contextlib.ExitStack() as stack:
        with path_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(locked(path, wait=wait, create=True))
        yield held


# -- folders -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Gives an empty folder inside a new, locked scratch folder of `parent`. Both are removed when the block ends or raises.

    Raises:
        PathError: `parent` cannot be made, or nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        with path_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent)
            inner = stack.enter_context(_new_scratch(parent)) / "inner"
            inner.mkdir()
        yield inner


@contextlib.contextmanager
def _new_scratch(parent: Path) -> Iterator[Path]:
    """A new scratch folder, locked by this process, until the block ends."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
        try:
            with contextlib.ExitStack() as stack:
                lock = scratch / "lock"
                try:
                    held = stack.enter_context(locked(lock, wait=False, create=True)) and lock.exists()
                except FileNotFoundError:
                    held = False
                if not held:  # another process took it for an abandoned one before it was locked
                    continue
                yield scratch
                return
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Removes the scratch folders of `parent` that nobody holds, also those whose maker was killed before it had the lock."""
    for scratch in parent.glob(TEMPORARY + "*/"):
        if scratch.is_symlink():
            continue
        with contextlib.suppress(OSError), locked(scratch / "lock", wait=False, create=True) as held:
            if held:
                shutil.rmtree(scratch, ignore_errors=True)


def publish(built: Path, target: Path) -> None:
    """Flushes the folder `built` and renames it to `target`, which must not exist or be an empty folder.

    Raises:
        PathError: there is something at `target`, or it cannot be written there. DiskSpaceError: no room.
    """
    with path_errors(target):
        _flush_all(built)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(built, target)
        flush(target.parent)


def replace_folder(built: Path, target: Path) -> None:
    """Flushes the folder `built` and puts it in the place of `target`, if there is one; the old content is then deleted.

    If the new folder cannot be moved there, the old one comes back. A kill in between leaves the old one beside the target
    (`restore_replaced`). Both folders must be on the same file system.

    Raises:
        PathError: nothing can be written there; `target` is as before. DiskSpaceError: no room.
    """
    with path_errors(target):
        _flush_all(built)
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            _restore(target.parent)
            old = target.with_name(f"{_REPLACED}{target.name}")
            if existed := target.exists():
                os.rename(target, old)
            try:
                os.rename(built, target)
            except BaseException:
                if existed:
                    os.rename(old, target)
                raise
            flush(target.parent)
            if existed:
                _discard(old)


def restore_replaced(parent: Path) -> None:
    """Brings back what a kill in `replace_folder` took out of this folder. For readers, before they say that it is missing.

    Does nothing where nothing is amiss, or where nothing can be written.
    """
    with contextlib.suppress(OSError, ValueError):
        if any(parent.glob(f"{_REPLACED}*")):
            with locked(parent):
                _restore(parent)


def _restore(parent: Path) -> None:
    for old in parent.glob(f"{_REPLACED}*"):
        target = old.with_name(old.name.removeprefix(_REPLACED))
        if target.exists():  # the new folder is there; only the old one was not deleted yet
            _discard(old)
        else:
            os.rename(old, target)
    flush(parent)


def _discard(folder: Path) -> None:
    """Deletes a folder under a scratch folder's name, so that a kill leaves nothing that could be taken for whole."""
    scratch = folder.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    os.rename(folder, scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)
