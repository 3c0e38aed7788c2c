"""`bank.json`: what a bank is made of, and the size and sha256 of each of its files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tasks as task_table
from ..config import STAGE_CONFIGS, STAGES, DataConfig, ModelConfig
from ..errors import BankError, ConfigError, M3DTError
from ..system.documents import checked_shape, field_types, read_document
from ..tasks import TaskSpec
from .growth import Growth, check_growths
from .storage import STORAGES, Storage
from .tensor_files import FileRecord

FORMAT_VERSIONS: dict[Storage, int] = {"float32": 1, "bfloat16": 2}
"""The version of a bank's format, by how it stores its weights. The first releases of this package read version 1 and refuse
others by their number. A float32 bank stays at version 1, so that they can read it and its hash does not change."""
OWN_TASKS_VERSION = 3
"""The version of a bank with tasks that are not among the 160, however it stores its weights."""
ADDED_TASKS_VERSION = 4
"""The version of a bank with tasks that were added after its training, or of a model that lacks a part of the published one."""
VERSIONS = (*FORMAT_VERSIONS.values(), OWN_TASKS_VERSION, ADDED_TASKS_VERSION)
"""The versions that are read."""
_LEFT_OUT: dict[str, Any] = {"storage": "float32", "specs": {}, "shown": (), "grown": (), "version": ""}
"""Fields that the first banks do not have. With these values they are left out, so that older versions read the bank."""
# [0-9], because \d also matches the digits of other scripts: a second spelling of an expert's number would count as an expert
_FILE_NAME = re.compile(
    r"(backbone|router|statistics|prompts|experts/[0-9]{3}|grown/[0-9]{3}-(statistics|prompts))\.safetensors"
)
MOST_THREADS = 1024
"""More CPU threads than any machine gives torch a use for; a bank's record decides how many a continued stage starts."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `bank.json`.

    specs: the tasks that are not among the 160, by name. shown: the tasks that nothing was trained on; the bank has only their
    statistics and prompts. groups: every other task → expert, once tasks are grouped. grouping: the settings that made the
    groups; None if the user gave them. stages: stage → the {"config", "threads", "data"} that it was trained with. files:
    name → record. storage: how the files store the weights. grown: the tasks that came with experts of their own after that;
    of the other fields only `specs` and `files` have them too. version: what its maker calls this edition of it; "": nothing.
    """

    model: ModelConfig
    data: DataConfig
    tasks: tuple[str, ...]
    groups: dict[str, int] | None = None
    grouping: dict[str, Any] | None = None
    stages: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    storage: Storage = "float32"
    specs: dict[str, TaskSpec] = dataclasses.field(default_factory=dict)
    shown: tuple[str, ...] = ()
    grown: tuple[Growth, ...] = ()
    version: str = ""

    @property
    def format_version(self) -> int:
        """The version of the format that this bank needs."""
        if self.shown or self.grown or not self.model.has_published_parts:
            return ADDED_TASKS_VERSION
        return OWN_TASKS_VERSION if self.specs else FORMAT_VERSIONS[self.storage]

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """The names of all tasks: `tasks`, then those of each growth."""
        return (*self.tasks, *(task for growth in self.grown for task in growth.tasks))

    def task(self, name: str) -> TaskSpec:
        """One of the bank's tasks."""
        return self.specs[name] if name in self.specs else task_table.BUILTIN[name]

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are stored."""
        fields = {
            **dataclasses.asdict(dataclasses.replace(self, specs={})),
            "model": self.model.to_dict(),
            "specs": {name: spec.to_dict() for name, spec in self.specs.items()},
        }
        return {name: value for name, value in fields.items() if name not in _LEFT_OUT or value != _LEFT_OUT[name]}

    @property
    def content_hash(self) -> str:
        """sha256 of everything that determines what the bank's agent does: configs, tasks and files."""
        values = self.to_dict()
        names = ["model", "data", "tasks", "files", "specs"]
        content = {name: values[name] for name in names if name in values}
        if self.grown:
            content["grown"] = [growth.groups for growth in self.grown]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `bank.json`."""
        return json.dumps({"format": "m3dt-bank", "format_version": self.format_version, **self.to_dict()}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes | Path, where: Path) -> Manifest:
        """Reads and checks the manifest in `text`, or in the file at this path; `where` is named in errors.

        Raises:
            BankError: it is not a bank's manifest, has a newer format, or contradicts itself.
        """
        values = read_document(text, dict[str, Any], BankError, name=where)
        if values.pop("format", None) != "m3dt-bank":
            raise BankError(f"{where} is damaged or foreign: it is not an m3dt-bank")
        if (version := values.pop("format_version", None)) not in VERSIONS:
            known = ", ".join(map(str, VERSIONS[:-1]))
            raise BankError(
                f"{where} is damaged or foreign: format version {version!r}; this version of m3dt-agent reads {known} and "
                f"{VERSIONS[-1]}"
            )
        manifest: Manifest = checked_shape(values, cls, BankError, name=where)
        try:
            if version != manifest.format_version:
                raise ConfigError(
                    f"format version {version} with what goes with {manifest.format_version}: weights stored as "
                    f"{manifest.storage!r}, {len(manifest.specs)} specs, {len(manifest.shown)} tasks that were only shown, "
                    f"{len(manifest.grown)} growths"
                )
            for stage, record in manifest.stages.items():
                _check_record(record, stage, f"stages.{stage}")
            for i, growth in enumerate(manifest.grown):
                _check_record(growth.training, "experts", f"grown[{i}].training")
            return manifest.checked()
        except M3DTError as error:
            raise BankError(f"{where} is damaged or foreign: {error}") from error

    @property
    def all_experts(self) -> tuple[int, ...]:
        """The experts that have a file, those of stage 2 and of growths, ascending."""
        return tuple(sorted(expert_index(name) for name in self.files if name.startswith("experts/")))

    @property
    def finished_experts(self) -> tuple[int, ...]:
        """The experts of stage 2 that have a file, ascending."""
        return tuple(expert for expert in self.all_experts if expert < self.model.n_experts)

    def with_experts(self, experts: Iterable[int]) -> Manifest:
        """The bank with only these of its experts, and without the growths that lack one of theirs.

        Unless all experts of stage 2 are left, the router is left out: it weighs all of them.

        Raises:
            ConfigError: an expert that the bank does not have.
        """
        chosen = set(experts)
        if unknown := chosen - set(self.all_experts):
            raise ConfigError(f"there are no experts {sorted(unknown)} in the bank; it has {list(self.all_experts)}")
        part = self.with_growths([growth for growth in self.grown if chosen.issuperset(growth.experts)])
        left = {name for name in part.files if not name.startswith("experts/") or expert_index(name) in chosen}
        if not chosen.issuperset(range(self.model.n_experts)):
            left.discard("router.safetensors")
        stages = {stage: record for stage, record in self.stages.items() if stage != "router" or "router.safetensors" in left}
        return dataclasses.replace(part, files={n: r for n, r in self.files.items() if n in left}, stages=stages)

    def with_growths(self, grown: Iterable[Growth]) -> Manifest:
        """The bank with only these of its growths: without the files and specs of the others."""
        kept = tuple(grown)
        gone = [growth for growth in self.grown if growth not in kept]
        files = {name for growth in gone for name in (growth.statistics_file, growth.prompts_file)}
        files |= {expert_file(expert) for growth in gone for expert in growth.experts}
        tasks = {task for growth in gone for task in growth.tasks}
        return dataclasses.replace(
            self,
            files={name: record for name, record in self.files.items() if name not in files},
            specs={name: spec for name, spec in self.specs.items() if name not in tasks},
            grown=kept,
        )

    def for_tasks(self, names: Sequence[str]) -> Manifest:
        """A bank for some of its tasks: their groups, all stages but the router, weights in float32, no files yet."""
        groups = None if self.groups is None else {name: self.groups[name] for name in names if name in self.groups}
        stages = {stage: record for stage, record in self.stages.items() if stage != "router"}
        specs = {name: spec for name, spec in self.specs.items() if name in names}
        shown = tuple(name for name in names if name in self.shown)
        return Manifest(self.model, self.data, tuple(names), groups, stages=stages, specs=specs, shown=shown)

    def with_tasks(self, tasks: Sequence[TaskSpec]) -> Manifest:
        """The bank with these tasks besides its own, which were only shown to it.

        Raises:
            ConfigError: it has one of them already, or they do not fit the model.
        """
        self.require_new(tasks)
        names = tuple(task.name for task in tasks)
        specs = {task.name: task for task in tasks if not task_table.is_builtin(task)}
        more = dataclasses.replace(self, tasks=self.tasks + names, specs=self.specs | specs, shown=self.shown + names)
        more.check_tasks()
        return more

    def require_new(self, tasks: Iterable[TaskSpec]) -> None:
        """Checks that the bank has none of these tasks.

        Raises:
            ConfigError: it has one.
        """
        if there := [task.name for task in tasks if task.name in self.all_tasks]:
            raise ConfigError(f"the bank has {', '.join(map(repr, there))} already; name a task that it does not have")

    def checked(self) -> Manifest:
        """Returns this manifest if its parts fit together.

        Raises:
            ConfigError: they do not; the message says which.
        """
        for name in self.files:
            if not is_bank_file(name):
                raise ConfigError(f"it lists {name!r}, which is not a file of a bank")
        self.check_tasks()
        self._check_files()
        if unknown := set(self.stages) - set(STAGES):
            raise ConfigError(f"it has stages {sorted(unknown)}; there are {', '.join(STAGES)}")
        if self.storage not in STORAGES:
            raise ConfigError(f"weights are stored as {' or '.join(STORAGES)}; got {self.storage!r}")
        if self.groups is not None:
            trained = set(self.finished_experts)
            check_groups(self.groups, [name for name in self.tasks if name not in self.shown], self.model.n_experts, trained)
        return self

    def _check_files(self) -> None:
        needed = ["statistics.safetensors", "prompts.safetensors"]
        needed += [name for growth in self.grown for name in (growth.statistics_file, growth.prompts_file)]
        if missing := [name for name in needed if name not in self.files]:
            raise ConfigError(f"it does not list {', '.join(missing)}")
        known = {*range(self.model.n_experts), *(expert for growth in self.grown for expert in growth.experts)}
        for name in self.files:
            if name.startswith("grown/") and name not in needed:
                raise ConfigError(f"it lists {name!r}, which belongs to no growth of it")
            if name.startswith("experts/") and expert_index(name) not in known:
                raise ConfigError(f"it lists {name!r} but has n_experts={self.model.n_experts} and no growth with this expert")

    def check_tasks(self) -> None:
        """Checks that the bank has tasks, none twice, and the specs of those that are not among the 160.

        Raises:
            ConfigError: otherwise.
            UnknownTaskError: a task has no spec and is not one of the 160.
        """
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError("it must name at least one task, and none twice")
        check_growths(self.grown, self.tasks, self.model.n_experts)
        names = self.all_tasks
        for name, spec in self.specs.items():
            if name != spec.name or name not in names:
                raise ConfigError(f"it has a spec of {spec.name!r} as {name!r}, which is not the name of one of its tasks")
            if name in task_table.BUILTIN:
                raise ConfigError(f"it has a spec of {name!r}, which is one of the 160 tasks and needs none")
        for name in names:
            if name not in self.specs:
                task_table.lookup(task_table.BUILTIN, name, "task without a spec")
        if unknown := [name for name in self.shown if name not in self.tasks]:
            raise ConfigError(f"it says that {', '.join(map(repr, unknown))} were only shown, which are none of its tasks")
        for name in self.tasks:
            if name in self.specs or name in self.shown:
                require_room(self.task(name), self.model)
        for growth in self.grown:
            self.model.for_tasks(map(self.task, growth.tasks))  # its expert makes room, within the bounds of a ModelConfig


def require_room(task: TaskSpec, model: ModelConfig) -> None:
    """Checks that a model of this shape takes the task.

    Raises:
        ConfigError: it is too wide or its episodes are too long; the message says how wide and how long.
    """
    asked = (task.obs_dim, task.act_dim, task.max_episode_steps)
    most = (model.state_dim, model.act_dim, model.max_timesteps)
    if any(one > largest for one, largest in zip(asked, most, strict=True)):
        raise ConfigError(
            f"task {task.name!r} has observations and actions of {asked[0]} + {asked[1]} and {asked[2]} steps; the model takes "
            f"{most[0]} + {most[1]} and {most[2]} (ModelConfig.for_tasks makes one that fits)"
        )


def check_groups(groups: Mapping[str, int], tasks: Sequence[str], n_experts: int, trained: Set[int]) -> None:
    """Checks that `groups` assigns each of `tasks` to an expert, and that each expert that is not `trained` has a task.

    Raises:
        ConfigError: otherwise; the message names the tasks or experts.
    """
    if set(groups) != set(tasks):
        raise ConfigError(f"groups must cover the bank's tasks; they differ in {sorted(set(groups) ^ set(tasks))}")
    if wrong := {task: e for task, e in groups.items() if type(e) is not int or not 0 <= e < n_experts}:
        raise ConfigError(f"groups must name experts 0 … {n_experts - 1}; got {wrong}")
    if empty := sorted(set(range(n_experts)) - set(groups.values()) - trained):
        raise ConfigError(f"no group may be empty; experts {empty} have no task to be trained on")


def _check_record(record: Mapping[str, Any], stage: str, place: str) -> None:
    """Checks the types of what is known of the record of a training; a later version of this package may have more.

    Raises:
        ConfigError: a value of another type; the message names its place.
    """
    config = checked_shape(record.get("config", {}), dict[str, Any], ConfigError, name=place)
    threads = checked_shape(record.get("threads", 1), int, ConfigError, name=f"{place}.threads")
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"{place}.threads must be in 1 … {MOST_THREADS}; got {threads}")
    checked_shape(record.get("data", ""), str, ConfigError, name=f"{place}.data")
    known = field_types(STAGE_CONFIGS[stage]) if stage in STAGES else {}
    for name in set(config) & set(known):
        checked_shape(config[name], known[name], ConfigError, name=f"{place}.config.{name}")


def is_bank_file(name: str) -> bool:
    """Whether a bank may have a file of this name; `bank.json` does not count."""
    return _FILE_NAME.fullmatch(name) is not None


def expert_file(expert: int) -> str:
    """The name of an expert's file in a bank."""
    return f"experts/{expert:03d}.safetensors"


def expert_index(name: str) -> int:
    """The expert whose file has this name."""
    return int(Path(name).stem)
