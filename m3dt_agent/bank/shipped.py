"""Banks on their way to jobs: each node of a cluster gets a bank's files once, and opens them verified.

    driver   bank ─► contents of its files, once, in Ray's object store
    node     <tmp>/m3dt-<user>/<sha256 of bank.json>/     written by the first job that needs it, under a lock; then read by all

On this machine's own processes nothing is copied: they open the bank where it is.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..disk import disk_space_errors, file_lock, publish, scratch_folder
from ..errors import BankError
from ..jobs import Engine, RayCluster
from .expert_bank import ExpertBank
from .tensor_files import read_content

Contents = Mapping[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class ShippedBank:
    """A bank that jobs can open wherever they run; made by `ship`. contents: a reference into Ray's object store, or None."""

    path: Path
    experts: tuple[int, ...]
    key: str
    contents: Any

    def open(self) -> ExpertBank:
        """The bank, not to be written to, as if it had only `experts`.

        Raises:
            BankError: damaged. DiskSpaceError: no room on this node.
        """
        return ExpertBank.open(self.folder(), experts=self.experts, read_only=True)

    def folder(self) -> Path:
        """Where the bank is on this node.

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
                with disk_space_errors(folder), scratch_folder(folder.parent) as scratch:
                    for name, content in contents.items():
                        (scratch / name).parent.mkdir(exist_ok=True)
                        content.tofile(scratch / name)
                    publish(scratch, folder)
        return folder


def ship(bank: ExpertBank, engine: Engine, experts: Iterable[int] | None = None) -> ShippedBank:
    """`bank` with only some of its experts (None: all) for the jobs of `engine`, which must be open (`jobs.opened`).

    Raises:
        BankError: a damaged file.
    """
    chosen = tuple(bank.finished_experts if experts is None else experts)
    manifest = bank.manifest.with_experts(chosen)
    text = manifest.to_json().encode()
    key = hashlib.sha256(text).hexdigest()
    if not isinstance(engine, RayCluster):
        return ShippedBank(bank.path.absolute(), chosen, key, None)
    import ray

    contents = {name: read_content(bank.path / name, record) for name, record in manifest.files.items()}
    return ShippedBank(bank.path.absolute(), chosen, key, ray.put({**contents, "bank.json": np.frombuffer(text, np.uint8)}))


def node_folder() -> Path:
    """Where this node keeps what it was sent: under the folder for temporary files, one per user.

    Raises:
        BankError: somebody else's folder has that name.
    """
    folder = Path(tempfile.gettempdir()) / f"m3dt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BankError(f"{folder} belongs to another user; what it holds cannot be trusted")
    return folder
