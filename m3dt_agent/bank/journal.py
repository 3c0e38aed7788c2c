"""How a bank's folder changes: locks, commits with their journal (drawn in expert_bank.py), and the check of all files.

A reader that must not write does not finish an interrupted commit: it reads what the commit will make, from the journal and the
files that still bear their new names (`manifest_file`, `current_file`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BankError, ConfigError
from ..system.disk import TEMPORARY, own_path, path_errors, write_file
from ..system.platforms import flush
from ..system.platforms import locked as locked_path
from .manifest import Manifest, is_bank_file
from .storage import as_stored, as_used
from .tensor_files import Check, FileRecord, for_each_file, read_tensors, verify, write_tensors

JOURNAL = "bank.json.next"
FOLDERS = ("experts", "grown")
"""The folders inside a bank that hold files of it."""


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Locks the bank's folder: alone to change its files, shared to verify them beside other readers.

    Raises:
        BankError: there is no such folder. PathError: it cannot be read.
    """
    if not path.is_dir():
        what = "there is a file" if path.exists() else "bank.json is missing"
        raise BankError(f"no bank at {path}: {what}")
    with contextlib.ExitStack() as stack:
        with path_errors(path):
            stack.enter_context(locked_path(path, shared=shared))
        yield


def manifest_file(path: Path) -> Path:
    """The manifest that counts: the journal, if a kill interrupted a commit in its last step."""
    return path / JOURNAL if (path / JOURNAL).exists() else path / "bank.json"


def current_file(path: Path, name: str) -> Path:
    """Where the file `name` is: under its new name still, if a kill interrupted a commit in its last step."""
    staged = path / f"{name}.next"
    return staged if (path / JOURNAL).exists() and staged.exists() else path / name


def read_weights(path: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    """Reads and verifies the file `name` of the bank at `path`; weights as float32.

    Raises:
        BankError: it is missing, damaged, or not stored as the manifest says.
    """
    while True:
        file = current_file(path, name)
        try:
            return as_used(path / name, read_tensors(file, manifest.files[name]), manifest.storage)
        except BankError:
            if current_file(path, name) == file:  # else it was renamed just now
                raise


def verified_manifest(
    path: Path, experts: tuple[int, ...] | None = None, check: Check = "contents", *, read_only: bool = False
) -> Manifest:
    """The manifest of the bank at `path`, after every file was checked. An interrupted commit is finished first.

    read_only: write nothing; an interrupted commit is read as if it were finished.

    Raises:
        BankError: there is no bank, or a file is missing, damaged or foreign. PathError: the folder cannot be used.
        ConfigError: experts that the bank does not have.
    """
    with path_errors(path):
        while True:
            with locked(path, shared=True):
                if read_only or not (path / JOURNAL).exists():
                    whole = read_manifest(manifest_file(path))
                    manifest = whole if experts is None else whole.with_experts(experts)
                    _verify_all(path, manifest, check)
                    refuse_strangers(path, whole)
                    return manifest
            with locked(path):
                finish_commit(path)


def _verify_all(path: Path, manifest: Manifest, check: Check) -> None:
    for_each_file(lambda name: verify(current_file(path, name), manifest.files[name], check), manifest.files)


def read_manifest(file: Path) -> Manifest:
    """Reads a bank.json or a journal.

    Raises:
        BankError: it is missing, damaged or foreign.
    """
    if not file.exists():
        raise BankError(f"no bank at {file.parent}: {file.name} is missing")
    return Manifest.from_json(file, file)


def write_commit(
    path: Path,
    manifest: Manifest,
    files: Mapping[str, Mapping[str, Tensor]],
    changes: Mapping[str, Any],
    seen: Mapping[str, FileRecord],
) -> Manifest:
    """Makes a commit on top of `manifest`, under the lock and without an older journal; returns the new manifest.

    seen: the files that the writer knows of. A file that is replaced must be as it was then, or become what it is.

    Raises:
        ConfigError: a file name or field that banks do not have. BankError: another process changed one of the files.
        DiskSpaceError: no room. PathError: nothing can be written there. In each case the bank is as before.
    """
    journal = path / JOURNAL
    if foreign := [name for name in files if not is_bank_file(name)]:
        raise ConfigError(
            f"a bank has no file {', '.join(map(repr, foreign))}; its files are those of the drawing in expert_bank"
        )
    try:
        remove_stale(path)
        stored = {name: as_stored(name, tensors, manifest.storage) for name, tensors in files.items()}
        records = {name: write_tensors(own_path(path, f"{name}.next"), tensors) for name, tensors in stored.items()}
        if changed := [name for name in records if manifest.files.get(name) not in (seen.get(name), records[name])]:
            raise BankError(
                f"another process has changed {', '.join(changed)} of bank {path} since it was opened here; open it again"
            )
        all_files = dict(sorted((manifest.files | records).items()))
        new = dataclasses.replace(manifest, files=all_files, **changes).checked()
        write_file(journal, new.to_json())
    except BaseException:
        if not journal.exists():
            remove_stale(path)
        raise
    _roll_forward(path, check="sizes")  # the files were hashed while they were written
    return new


def finish_commit(path: Path) -> None:
    """Does the last step of an interrupted commit, if there is one; under the lock.

    Raises:
        BankError: a file that the journal lists is damaged. PathError: nothing can be written there.
    """
    if (path / JOURNAL).exists():
        _roll_forward(path, check="contents")


def _roll_forward(path: Path, check: Check) -> None:
    journal = path / JOURNAL
    manifest = read_manifest(journal)
    for name, record in manifest.files.items():
        staged = own_path(path, f"{name}.next")
        if staged.exists():
            verify(staged, record, check)
            os.replace(staged, path / name)
    for folder in {(path / name).parent for name in manifest.files}:
        flush(folder)
    os.replace(journal, path / "bank.json")
    flush(path)


def remove_stale(path: Path) -> None:
    """Removes what an unfinished commit left behind; under the lock, and only if there is no journal."""
    for folder in FOLDERS:
        own_path(path, folder)
    for pattern in ("*.safetensors.next", *(f"{folder}/*.safetensors.next" for folder in FOLDERS), f"{TEMPORARY}*.next"):
        for staged in path.glob(pattern):
            staged.unlink(missing_ok=True)


def refuse_strangers(path: Path, manifest: Manifest) -> None:
    """Checks that the folder holds no safetensors files besides the manifest's.

    Raises:
        BankError: it does; the message names the file.
    """
    inside = (file for folder in FOLDERS for file in path.glob(f"{folder}/*.safetensors"))
    for file in sorted([*path.glob("*.safetensors"), *inside]):
        if (name := file.relative_to(path).as_posix()) not in manifest.files:
            raise BankError(f"{path} holds {name}, which its bank.json does not list; move this file elsewhere")
