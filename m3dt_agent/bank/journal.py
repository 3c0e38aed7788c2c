"""How a bank's folder changes: locks, the journal of a commit, and the check of every file (the steps: bank.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from ..disk import TEMPORARY, flush
from ..errors import BankError
from .manifest import Manifest
from .tensor_files import FileRecord, for_each_file, verify, verify_size

JOURNAL = "bank.json.next"


@contextlib.contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """Holds the bank's folder: alone (LOCK_EX) while its files change, with other readers (LOCK_SH) while they are verified.

    Raises:
        BankError: there is no such folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise BankError(f"no bank at {path}: bank.json is missing") from None
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def verified_manifest(
    path: Path, experts: tuple[int, ...] | None = None, check: Literal["contents", "sizes"] = "contents"
) -> Manifest:
    """The manifest of the bank at `path`, after what `ExpertBank.open` promises: commits finished, every file checked.

    Raises:
        BankError: no bank there, or a file of it is missing, damaged or foreign.
        ConfigError: experts that the bank does not have.
    """
    journal = path / JOURNAL
    while True:
        with locked(path, fcntl.LOCK_SH):
            if not journal.exists():
                whole = read_manifest(path / "bank.json")
                manifest = whole if experts is None else whole.with_experts(experts)
                _verify_all(path, manifest.files, verify if check == "contents" else verify_size)
                refuse_strangers(path, whole)
                return manifest
        with locked(path, fcntl.LOCK_EX):
            if journal.exists():
                roll_forward(path)


def _verify_all(path: Path, files: Mapping[str, FileRecord], verify_file: Callable[[Path, FileRecord], None]) -> None:
    for_each_file(lambda name: verify_file(path / name, files[name]), files)


def read_manifest(file: Path) -> Manifest:
    """What a bank.json, or a journal, says.

    Raises:
        BankError: it is missing, damaged or foreign.
    """
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise BankError(f"no bank at {file.parent}: {file.name} is missing") from None
    except UnicodeDecodeError as error:
        raise BankError(f"{file} is damaged or foreign: {error}") from error
    return Manifest.from_json(text, file)


def roll_forward(path: Path) -> None:
    """Step 3 of a commit, under the lock.

    Raises:
        BankError: a file that the journal names is damaged.
    """
    journal = path / JOURNAL
    manifest = read_manifest(journal)
    for name, record in manifest.files.items():
        staged = path / f"{name}.next"
        if staged.exists():
            verify(staged, record)
            os.replace(staged, path / name)
    for folder in {(path / name).parent for name in manifest.files}:
        flush(folder)
    os.replace(journal, path / "bank.json")
    flush(path)


def remove_stale(path: Path) -> None:
    """Removes what an unfinished commit left behind; under the lock, and only if there is no journal."""
    for pattern in ("*.safetensors.next", "experts/*.safetensors.next", f"{TEMPORARY}*.next"):
        for staged in path.glob(pattern):
            staged.unlink(missing_ok=True)


def refuse_strangers(path: Path, manifest: Manifest) -> None:
    """Checks that the folder holds no weights but the manifest's.

    Raises:
        BankError: it does; the message names the file.
    """
    for file in sorted([*path.glob("*.safetensors"), *path.glob("experts/*.safetensors")]):
        if (name := file.relative_to(path).as_posix()) not in manifest.files:
            raise BankError(f"{path} holds {name}, which its bank.json does not know: a foreign file; move it elsewhere")
