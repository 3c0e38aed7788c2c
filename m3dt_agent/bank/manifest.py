"""What a bank is made of: a manifest, and files that are whole and known to it by their sha256, or are not used.

Writing: temporary name, flush to disk, then rename; never in place (safetensors maps files: an in-place write would change
weights already loaded). Reading: the bytes are hashed before a tensor of them exists, and tensors get memory of their own.

    safetensors file   | 8 bytes: n | n bytes: JSON header, padded with spaces to 8 | data, tensor after tensor |

It is written here rather than by `safetensors.torch.save_file` so that it is hashed on the way, needs no second copy in memory,
and a full disk is an `OSError` with an errno.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tasks as task_table
from ..config import STAGES, DataConfig, ModelConfig, from_dict
from ..errors import BankError, ConfigError, M3DTError
from .storage import STORAGES, Storage
from .tensor_files import (
    FileRecord,
)

FORMAT_VERSIONS: dict[Storage, int] = {"float32": 1, "bfloat16": 2}
"""The version of a bank's format, by how it stores its weights. The first versions of this package read 1 alone and refuse 2 by
its number; a bank that needs nothing newer stays 1, so that they read it, and it has the hash that it always had."""
_FILE_NAME = re.compile(r"(backbone|router|statistics|prompts|experts/\d{3})\.safetensors")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `bank.json`.

    groups: task → expert, once tasks are grouped; grouping: the settings that made them (None: the user's own groups). stages:
    stage → {"config", "threads", "data"} it was trained with. files: name → record. storage: of the weights in them.
    """

    model: ModelConfig
    data: DataConfig
    tasks: tuple[str, ...]
    groups: dict[str, int] | None = None
    grouping: dict[str, Any] | None = None
    stages: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    storage: Storage = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are stored; `storage` only where it is not float32, since the first banks do not have it."""
        fields = {**dataclasses.asdict(self), "model": self.model.to_dict()}
        return {name: value for name, value in fields.items() if (name, value) != ("storage", "float32")}

    def to_json(self) -> str:
        """`bank.json`'s text."""
        version = FORMAT_VERSIONS[self.storage]
        return json.dumps({"format": "m3dt-bank", "format_version": version, **self.to_dict()}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """The manifest in `text`, validated; `where` is named in errors.

        Raises:
            BankError: not a bank's manifest, a newer format, or content that cannot be.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != "m3dt-bank":
                raise ConfigError("it is not an m3dt-bank")
            if (version := values.pop("format_version")) not in FORMAT_VERSIONS.values():
                known = " and ".join(map(str, FORMAT_VERSIONS.values()))
                raise ConfigError(f"format version {version!r}; this version of m3dt-agent reads {known}")
            manifest = from_dict(cls, values)
            if version != FORMAT_VERSIONS.get(manifest.storage):
                valid = ", ".join(f"{number} goes with {storage}" for storage, number in FORMAT_VERSIONS.items())
                raise ConfigError(f"format version {version} with weights stored as {manifest.storage!r}; {valid}")
            return dataclasses.replace(
                manifest,
                model=from_dict(ModelConfig, values["model"]),
                data=from_dict(DataConfig, values["data"]),
                tasks=tuple(task_table.get(name).name for name in values["tasks"]),
                files={name: FileRecord(**record) for name, record in values["files"].items()},
            ).checked()
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, M3DTError) as error:
            raise BankError(f"{where} is damaged or foreign: {error}") from error

    @property
    def finished_experts(self) -> tuple[int, ...]:
        """The experts that have a file, ascending."""
        return tuple(sorted(expert_index(name) for name in self.files if name.startswith("experts/")))

    def with_experts(self, experts: Iterable[int]) -> Manifest:
        """What is left of the bank if only these of its experts are at hand: no router either, which weighs all of them.

        Raises:
            ConfigError: an expert that the bank does not have.
        """
        chosen = set(experts)
        if unknown := chosen - set(self.finished_experts):
            raise ConfigError(f"there are no experts {sorted(unknown)} in the bank; it has {list(self.finished_experts)}")
        left = {*map(expert_file, chosen), *(name for name in self.files if not name.startswith("experts/"))}
        if len(chosen) < self.model.n_experts:
            left.discard("router.safetensors")
        stages = {stage: record for stage, record in self.stages.items() if stage != "router" or "router.safetensors" in left}
        return dataclasses.replace(self, files={n: r for n, r in self.files.items() if n in left}, stages=stages)

    def checked(self) -> Manifest:
        """This manifest, if its parts fit together.

        Raises:
            ConfigError: they do not.
        """
        for name in self.files:
            if not is_bank_file(name):
                raise ConfigError(f"it lists {name!r}, which no bank has")
            if name.startswith("experts/") and expert_index(name) >= self.model.n_experts:
                raise ConfigError(f"it lists {name!r} but has n_experts={self.model.n_experts}")
        if missing := [f"{name}.safetensors" for name in ("statistics", "prompts") if f"{name}.safetensors" not in self.files]:
            raise ConfigError(f"it does not list {', '.join(missing)}")
        if unknown := set(self.stages) - set(STAGES):
            raise ConfigError(f"it has stages {sorted(unknown)}; there are {', '.join(STAGES)}")
        if self.storage not in STORAGES:
            raise ConfigError(f"weights are stored as {' or '.join(STORAGES)}; got {self.storage!r}")
        if self.groups is not None:
            trained = {expert_index(name) for name in self.files if name.startswith("experts/")}
            check_groups(self.groups, self.tasks, self.model.n_experts, trained)
        return self


def check_groups(groups: Mapping[str, int], tasks: Sequence[str], n_experts: int, trained: Set[int]) -> None:
    """Checks that `groups` gives each of `tasks` one expert, and each of `n_experts` that is not `trained` at least one task.

    Raises:
        ConfigError: it does not; the message names the tasks or experts.
    """
    if set(groups) != set(tasks):
        raise ConfigError(f"groups must cover the bank's tasks; they differ in {sorted(set(groups) ^ set(tasks))}")
    if wrong := {task: e for task, e in groups.items() if type(e) is not int or not 0 <= e < n_experts}:
        raise ConfigError(f"groups must name experts 0 … {n_experts - 1}; got {wrong}")
    if empty := sorted(set(range(n_experts)) - set(groups.values()) - trained):
        raise ConfigError(f"no group may be empty; experts {empty} have no task to be trained on")


def is_bank_file(name: str) -> bool:
    """Whether a bank may have a file of this name besides `bank.json`."""
    return _FILE_NAME.fullmatch(name) is not None


def expert_file(expert: int) -> str:
    """The name of an expert's file in a bank."""
    return f"experts/{expert:03d}.safetensors"


def expert_index(name: str) -> int:
    return int(Path(name).stem)
