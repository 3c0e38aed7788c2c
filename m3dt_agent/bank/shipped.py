"""Sends a bank to jobs: every node of a Ray cluster gets the bank's files once and verifies them.

    driver   the content of the bank's files ─► Ray's object store, once
    node     <tmp>/m3dt-<user>/<sha256 of bank.json>/   written by the first job that needs it, under a lock; the others read it

Jobs in processes of this machine open the bank where it is, without a copy.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BankError
from ..jobs import Engine, RayCluster
from ..system.disk import file_lock, path_errors, publish, scratch_folder
from ..system.platforms import user_id
from .expert_bank import ExpertBank
from .tensor_files import Check, read_content

Contents = Mapping[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class ShippedBank:
    """A bank that jobs can open wherever they run; `ship` makes it.

    path: the bank on the driver. experts: those that jobs see. key: sha256 of the manifest with these experts. contents: a
    reference to the files in Ray's object store; None: jobs read `path`.
    """

    path: Path
    experts: tuple[int, ...]
    key: str
    contents: Any

    def open(self, *, check: Check = "contents") -> ExpertBank:
        """Opens the bank read-only, as if it had only `experts`. check: as in `ExpertBank.open`.

        Raises:
            BankError: a file is damaged. DiskSpaceError: no room on this node. PathError: nothing can be written there.
        """
        return ExpertBank.open(self.folder(), experts=self.experts, read_only=True, check=check)

    def folder(self) -> Path:
        """The bank's folder on this node; copies the bank there first if need be.

        Raises:
            DiskSpaceError: no room.
        """
        if self.contents is None:
            return self.path
        folder = node_folder() / self.key
        with file_lock(folder.with_name(f"{self.key}.lock")):
            if not folder.exists():
                import ray

                contents: Contents = ray.get(self.contents)
                with path_errors(folder), scratch_folder(folder.parent) as scratch:
                    for name, content in contents.items():
                        (scratch / name).parent.mkdir(exist_ok=True)
                        content.tofile(scratch / name)
                    publish(scratch, folder)
        return folder


def ship(bank: ExpertBank, engine: Engine, experts: Iterable[int] | None = None) -> ShippedBank:
    """Makes `bank` available to the jobs of `engine`, which must be open (`jobs.opened`). experts: only these; None: all.

    Raises:
        BankError: a file is damaged.
    """
    chosen = tuple(bank.manifest.all_experts if experts is None else experts)
    manifest = bank.manifest.with_experts(chosen)
    text = manifest.to_json().encode()
    key = hashlib.sha256(text).hexdigest()
    if not isinstance(engine, RayCluster):
        return ShippedBank(bank.path.absolute(), chosen, key, None)
    import ray

    contents = {name: read_content(bank.file(name), record) for name, record in manifest.files.items()}
    return ShippedBank(bank.path.absolute(), chosen, key, ray.put({**contents, "bank.json": np.frombuffer(text, np.uint8)}))


def node_folder() -> Path:
    """Where this node keeps the banks it was sent: one folder per user, in the system's temporary folder.

    Raises:
        BankError: a folder of this name belongs to another user, or is a link. PathError: it cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / f"m3dt-{user_id()}"
    with path_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    if folder.is_symlink() or owner != user_id():
        raise BankError(f"{folder} belongs to another user, so its content cannot be trusted; set TMPDIR to another folder")
    return folder
