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
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import BankError, DiskSpaceError

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
