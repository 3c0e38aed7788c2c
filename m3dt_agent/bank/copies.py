"""Writes a whole bank folder at once, or nothing: a copy of another bank, or a new one from tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor

from ..system.disk import path_errors, publish, require_new_folder, scratch_folder
from .journal import current_file, read_weights
from .manifest import Manifest
from .storage import Storage, as_stored, holds_weights
from .tensor_files import FileRecord, read_content, write_tensors

_UNWRITTEN = FileRecord("0" * 64, 0)
"""Stands for the record of a file that is not written yet."""


def copy_bank(
    source: Path,
    manifest: Manifest,
    target: Path,
    storage: Storage,
    replaced: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Copies the files that `manifest` lists from the bank at `source` to the new bank at `target`, verified as they are read.

    storage: how the copy stores its weights; if the source stores them in the same way, files are copied byte for byte.
    replaced: files that the copy has instead of the source's, or besides them, by name.

    Raises:
        BankError: `target` exists and is not an empty folder, or a file of the source is missing or damaged.
        ConfigError: no such storage. DiskSpaceError: no room. PathError: nothing can be written there.
    """
    copied, own = dataclasses.replace(manifest, storage=storage), replaced or {}

    def copy(name: str, to: Path) -> FileRecord:
        if name in own:
            return write_tensors(to, as_stored(name, own[name], storage))
        if storage != manifest.storage and holds_weights(name):
            return write_tensors(to, as_stored(name, read_weights(source, name, manifest), storage))
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(read_content(current_file(source, name), manifest.files[name]).data)
        return manifest.files[name]

    _write_folder(target, copied, {**manifest.files, **own}, copy)


def write_bank(target: Path, manifest: Manifest, files: Mapping[str, Callable[[], Mapping[str, Tensor]]]) -> None:
    """Writes a new bank to `target`: `manifest` with these files. Each function gives its file's tensors when it is written.

    Raises:
        BankError: `target` exists and is not an empty folder. DiskSpaceError: no room. PathError: nothing can be written there.
    """
    _write_folder(target, manifest, files, lambda name, to: write_tensors(to, as_stored(name, files[name](), manifest.storage)))


def _write_folder(target: Path, manifest: Manifest, names: Collection[str], write: Callable[[str, Path], FileRecord]) -> None:
    """Writes the folder whole or not at all. `write` makes the file of a name at a path."""
    dataclasses.replace(manifest, files=dict.fromkeys(names, _UNWRITTEN)).checked()
    require_new_folder(target)
    with path_errors(target), scratch_folder(target.parent) as scratch:
        records = {name: write(name, scratch / name) for name in sorted(names)}
        (scratch / "bank.json").write_text(dataclasses.replace(manifest, files=records).checked().to_json())
        publish(scratch, target)
