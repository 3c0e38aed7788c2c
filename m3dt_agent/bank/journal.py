"""How a bank's folder changes: locks, commits with their journal (drawn in expert_bank.py), and the check of all files."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..disk import TEMPORARY, flush, write_file
from ..errors import BankError
from .manifest import Manifest
from .storage import as_stored
from .tensor_files import Check, for_each_file, verify, write_tensors

JOURNAL = "bank.json.next"


@contextlib.contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """Locks the bank's folder: LOCK_EX to change its files, LOCK_SH to verify them beside other readers.

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


def verified_manifest(path: Path, experts: tuple[int, ...] | None = None, check: Check = "contents") -> Manifest:
    """The manifest of the bank at `path`, once interrupted commits are finished and every file is checked.

    Raises:
        BankError: there is no bank, or a file is missing, damaged or foreign.
        ConfigError: experts that the bank does not have.
    """
    journal = path / JOURNAL
    while True:
        with locked(path, fcntl.LOCK_SH):
            if not journal.exists():
                whole = read_manifest(path / "bank.json")
                manifest = whole if experts is None else whole.with_experts(experts)
                _verify_all(path, manifest, check)
                refuse_strangers(path, whole)
                return manifest
        with locked(path, fcntl.LOCK_EX):
            if journal.exists():
                roll_forward(path)


def _verify_all(path: Path, manifest: Manifest, check: Check) -> None:
    for_each_file(lambda name: verify(path / name, manifest.files[name], check), manifest.files)


def read_manifest(file: Path) -> Manifest:
    """Reads a bank.json or a journal.

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


def write_commit(
    path: Path, manifest: Manifest, files: Mapping[str, Mapping[str, Tensor]], changes: Mapping[str, Any]
) -> Manifest:
    """Makes a commit, under the lock and without an older journal; returns the new manifest.

    Raises:
        ConfigError: a file name or field that banks do not have.
        DiskSpaceError: no room; the bank is as before.
    """
    journal = path / JOURNAL
    try:
        remove_stale(path)
        stored = {name: as_stored(name, tensors, manifest.storage) for name, tensors in files.items()}
        records = {name: write_tensors(path / f"{name}.next", tensors) for name, tensors in stored.items()}
        all_files = dict(sorted((manifest.files | records).items()))
        new = dataclasses.replace(manifest, files=all_files, **changes).checked()
        write_file(journal, new.to_json())
    except BaseException:
        if not journal.exists():
            remove_stale(path)
        raise
    roll_forward(path, check="sizes")  # the files were hashed while they were written
    return new


def roll_forward(path: Path, check: Check = "contents") -> None:
    """Does the last step of a commit, under the lock.

    Raises:
        BankError: a file that the journal lists is damaged.
    """
    journal = path / JOURNAL
    manifest = read_manifest(journal)
    for name, record in manifest.files.items():
        staged = path / f"{name}.next"
        if staged.exists():
            verify(staged, record, check)
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
    """Checks that the folder holds no safetensors files besides the manifest's.

    Raises:
        BankError: it does; the message names the file.
    """
    for file in sorted([*path.glob("*.safetensors"), *path.glob("experts/*.safetensors")]):
        if (name := file.relative_to(path).as_posix()) not in manifest.files:
            raise BankError(f"{path} holds {name}, which its bank.json does not list; move this file elsewhere")
