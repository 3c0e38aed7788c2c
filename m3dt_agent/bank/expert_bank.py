"""`ExpertBank`: a folder of safetensors files, and a `bank.json` with the size and sha256 of each (docs/architecture.md#bank).

    bank/
      bank.json                format version, ModelConfig, DataConfig, tasks, groups, stages, size and sha256 of every file
      backbone.safetensors     stage 1
      experts/000.safetensors  stage 2, one file per expert
      router.safetensors       stage 3
      statistics.safetensors   per task: observation mean and deviation, return scale, target return
      prompts.safetensors      per task: the last steps of its best episodes
      grown/000-….safetensors  statistics and prompts of tasks that came later, with experts of their own (growth.py)
      resume/, logs/           checkpoints and learning curves; local, never copied or pushed

Weights may be stored as bfloat16 (storage.py) but are read as float32; the hashes are of the stored bytes. Nothing is pickled.
A file's bytes are verified before any tensor of it is used. Only `commit` changes these files (not resume/ and logs/), through
a journal:

    1. every changed file is written to <name>.next and flushed
    2. bank.json.next is renamed into place: from here on the commit counts, whatever is killed
    3. every <name>.next is renamed to <name>, then bank.json.next to bank.json; after a kill, `open` finishes this step
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import tasks as task_table
from ..config import DataConfig, ModelConfig
from ..config.checks import is_integer, require_instance
from ..data.prompts import Prompt, prompts_to_tensors
from ..data.stats import TaskStatistics, statistics_to_tensors
from ..data.task_datasets import TaskDatasets
from ..errors import BankError, ConfigError, StageError
from ..system.disk import path_errors, user_path
from ..tasks import TaskSpec
from .adding import added_tasks, copy_grown, copy_with_tasks
from .contents import BankContents
from .copies import copy_bank, write_bank
from .journal import (
    JOURNAL,
    finish_commit,
    locked,
    manifest_file,
    read_manifest,
    refuse_strangers,
    verified_manifest,
    write_commit,
)
from .manifest import Manifest, expert_file
from .merging import merged_fields, require_same_bank
from .storage import Storage
from .tensor_files import Check


class ExpertBank(BankContents):
    """A bank folder, verified when it is opened. Make one with `create` or `open`."""

    def __init__(
        self, path: Path, manifest: Manifest, experts: tuple[int, ...] | None = None, *, read_only: bool = False
    ) -> None:
        super().__init__(path, manifest)
        self._experts = experts  # None: all
        self._read_only = read_only

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: ModelConfig,
        tasks: Sequence[TaskSpec | str],
        statistics: Mapping[str, TaskStatistics],
        prompts: Mapping[str, Sequence[Prompt]],
        data_config: DataConfig,
    ) -> ExpertBank:
        """Makes a new bank with its tasks' statistics and prompts and no weights yet.

        Raises:
            BankError: there already is a bank at `path`, or safetensors files of something else.
            ConfigError: the statistics or prompts are of other tasks than `tasks`.
            DiskSpaceError: no room. PathError: the folder cannot be made or written to.
        """
        path = user_path(path)
        if is_bank(path):
            raise BankError(f"there already is a bank at {path}; open it, or choose another folder")
        resolved = task_table.resolve(tasks)
        names = tuple(spec.name for spec in resolved)
        for what, found in (("statistics", statistics), ("prompts", prompts)):
            if set(found) != set(names):
                raise ConfigError(f"{what} must be those of the bank's tasks; they differ in {sorted(set(found) ^ set(names))}")
        own = {spec.name: spec for spec in resolved if not task_table.is_builtin(spec)}
        bank = cls(path, Manifest(config, data_config, names, specs=own))
        bank.manifest.check_tasks()
        with path_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            refuse_strangers(path, bank.manifest)
        ordered_statistics = {name: statistics[name] for name in names}
        ordered_prompts = {name: prompts[name] for name in names}
        bank.commit(
            {
                "statistics.safetensors": statistics_to_tensors(ordered_statistics),
                "prompts.safetensors": prompts_to_tensors(ordered_prompts),
            }
        )
        return bank

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        experts: Iterable[int] | None = None,
        read_only: bool = False,
        check: Check = "contents",
    ) -> ExpertBank:
        """Opens the bank at `path` and verifies every file. If a kill interrupted a commit, the commit is finished first.

        Args:
            experts: open it as if it had only these; the files of the others need not exist. None: all of the bank's.
            read_only: write nothing, and refuse whatever would change it. An interrupted commit is read as if it were finished.
            check: "sizes" only checks that each file exists with the expected size; for callers about to read the files, since
                `read`, `model` and `copy_to` verify what they read.

        Raises:
            BankError: there is no bank, or a file is missing, damaged or foreign; the message names it.
            ConfigError: experts that the bank does not have. PathError: the folder cannot be used.
        """
        path, chosen = user_path(path), None if experts is None else tuple(experts)
        return cls(path, verified_manifest(path, chosen, check, read_only=read_only), chosen, read_only=read_only)

    def refresh(self, *, check: Check = "contents") -> None:
        """Takes over what other processes have committed since, checked as in `open`.

        Raises:
            BankError: as `open`.
        """
        self._follow(verified_manifest(self.path, self._experts, check, read_only=self._read_only))

    def require_writable(self) -> None:
        """Checks that the bank may be changed.

        Raises:
            BankError: it was opened read-only, as banks in the Hub's cache and those that come with the package are.
        """
        if self._read_only:
            raise BankError(
                f"bank {self.path} must not be changed: it is in the Hub's cache, came with the package, or was opened "
                "read-only; train in another folder (bank=…)"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Verifies the bank and keeps it unchanged inside the block: a `commit` elsewhere waits until the block ends.

        Raises:
            BankError: as `open`, or another process changed the bank at this moment.
        """
        self.refresh()
        with locked(self.path, shared=True):
            now = self._seen(read_manifest(manifest_file(self.path)))
            if self.manifest != now or not (self._read_only or manifest_file(self.path).name == "bank.json"):
                raise BankError(f"bank {self.path} was changed by another process just now; try again")
            yield

    def commit(self, files: Mapping[str, Mapping[str, Tensor]], **changes: Any) -> None:
        """Replaces files and manifest fields atomically: after a kill, all of the change is there or none.

        What other processes have committed since this bank was opened stays, also the records of other stages.

        Args:
            files: file name (see the module's drawing) → tensors; weights are converted to the bank's storage.
            changes: fields of `Manifest` (groups, grouping, stages, grown).

        Raises:
            ConfigError: a file name or field that banks do not have.
            BankError: the bank is read-only, or another process has changed the same file or field otherwise.
            DiskSpaceError: no room. PathError: nothing can be written there. In each case the bank is as before.
        """
        self.update(lambda now: (files, merged_fields(self.manifest, now, changes, self.path)))

    def update(self, make: Callable[[Manifest], tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]]]) -> None:
        """Commits the files and fields that `make` returns for the manifest as it is now; it cannot change meanwhile.

        Raises:
            As `commit`.
        """
        self.require_writable()
        with path_errors(self.path), locked(self.path):
            finish_commit(self.path)
            now = self._manifest_now()
            files, changes = make(now)
            new = write_commit(self.path, now, files, changes, self.manifest.files)
        if self._experts is not None:
            self._experts = tuple(e for e in new.all_experts if e in self._experts or expert_file(e) in files)
        self._follow(self._seen(new))

    def _follow(self, now: Manifest) -> None:
        """Takes over a newer manifest; what is known of tasks is read again if there are more."""
        if now.all_tasks != self.manifest.all_tasks:
            for name in ("statistics", "prompts"):
                self.__dict__.pop(name, None)
        self.manifest = now

    def _manifest_now(self) -> Manifest:
        """The manifest on disk; before the first commit of `create` there is none. Under the lock."""
        if not self.manifest.files:
            if is_bank(self.path):
                raise BankError(f"there already is a bank at {self.path}; open it, or choose another folder")
            return self.manifest
        now = read_manifest(self.path / "bank.json")
        require_same_bank(self.manifest, now, self.path)
        return now

    def _seen(self, whole: Manifest) -> Manifest:
        return whole if self._experts is None else whole.with_experts(self._experts)

    def copy_to(self, path: str | Path, *, storage: Storage | None = None, version: str | None = None) -> ExpertBank:
        """Copies the bank, without resume/ and logs/, to the folder `path`, whole or not at all. Verifies what it reads.

        storage: how the copy stores its weights; None: as this bank, byte for byte. From float32 to bfloat16 the weights are
        rounded, and the copy has another content hash. From bfloat16 to float32 no number changes.
        version: what you call this edition of the bank; None: as this bank's.

        Raises:
            BankError: `path` exists and is not an empty folder, or a file of this bank is damaged.
            ConfigError: no such storage. DiskSpaceError: no room.
        """
        path = user_path(path)
        manifest = self.manifest if version is None else dataclasses.replace(self.manifest, version=version)
        copy_bank(self.path, manifest, path, storage or self.storage)
        return ExpertBank.open(path, check="sizes")

    def with_tasks(self, path: str | Path, data: TaskDatasets) -> ExpertBank:
        """Makes a copy of the bank at `path` that acts in the tasks of `data` too, without training: it keeps their prompts.

        Prompts and statistics of these tasks are made as the bank's own were. No weight changes, and this bank stays as it is.
        In the new tasks the mixture acts if there is a router, else the backbone; or the expert that the user names
        (`M3DTAgent.learn_task` says what to expect). Backbone and experts of the copy cannot be trained any further.

        data: opened with `few`, one episode of a task is enough.

        Raises:
            ConfigError: the bank has one of the tasks already, or they are too wide or too long for its model.
            StageError: the backbone is not trained.
            BankError: `path` exists and is not an empty folder, or a file of this bank is damaged. DiskSpaceError: no room.
        """
        require_instance("data", data, TaskDatasets)
        if not self.is_done("backbone"):
            raise StageError(f"bank {self.path} has no backbone yet, so it can be shown no task; train it first")
        path = user_path(path)
        copy_with_tasks(self, added_tasks(data, self.config, self.data_config), path)
        return ExpertBank.open(path, check="sizes")

    def grown(self, path: str | Path, data: TaskDatasets, *, experts: int = 1) -> ExpertBank:
        """Makes a copy of the bank at `path` that has the tasks of `data` too, and room for experts of their own.

        `training.fit_growth` trains these experts on `data` alone; `training.grow` does both. What the bank has stays as it is,
        byte for byte, and acts on its tasks as before, to the last bit. The new tasks can be acted on once their expert is
        trained. They may be wider and longer than the bank's model: their expert brings what they need.

        experts: how many; the tasks are split over them in their order, as equally as can be.

        Raises:
            ConfigError: the bank has one of the tasks already, a task is wider or longer than any model may be, or there are
                more experts than tasks.
            StageError: the backbone is not trained, or the bank has grown before and those experts are not trained yet.
            BankError: `data` were opened with another DataConfig, `path` exists and is not an empty folder, or a file of this
                bank is damaged. DiskSpaceError: no room.
        """
        require_instance("data", data, TaskDatasets)
        if not self.is_done("backbone"):
            raise StageError(f"bank {self.path} has no backbone yet, so it cannot grow; run fit_stage('backbone', ...) first")
        path = user_path(path)
        copy_grown(self, data, experts, path)
        return ExpertBank.open(path, check="sizes")

    def without_growth(self, path: str | Path, *, keep: int = 0) -> ExpertBank:
        """Copies the bank as it was before it grew, or after the first `keep` times, to the folder `path`; as `copy_to`.

        Raises:
            ConfigError: it has not grown so often. Else as `copy_to`.
        """
        path = user_path(path)
        if not is_integer(keep) or not 0 <= keep <= len(self.growths):
            raise ConfigError(f"keep must be in 0 … {len(self.growths)}, as often as the bank has grown; got {keep!r}")
        copy_bank(self.path, self.manifest.with_growths(self.growths[:keep]), path, self.storage)
        return ExpertBank.open(path, check="sizes")

    def for_tasks(self, path: str | Path, tasks: Sequence[TaskSpec | str]) -> ExpertBank:
        """Makes a new bank at `path` for some of this bank's tasks: its backbone and experts, no router, weights in float32.

        Stage 3 then fits a router to these tasks, starting from new weights or from this bank's (`fit_stage(..., start=bank)`).
        Tasks by which the bank has grown are not among them: the router knows nothing of their experts.

        Raises:
            UnknownTaskError: a task that this bank does not have. StageError: the backbone or an expert is not trained.
            BankError: `path` exists and is not an empty folder, or a file is damaged. DiskSpaceError: no room.
        """
        own = {name: name for name in self.manifest.tasks}
        chosen = task_table.resolve(tasks, first=self.tasks)
        names = tuple(task_table.lookup(own, spec.name, "task of this bank") for spec in chosen)
        if not (self.is_done("backbone") and self.is_done("experts")):
            raise StageError(f"bank {self.path} lacks its backbone or some experts, so no router can be fitted to it yet")
        statistics, prompts = {name: self.statistics[name] for name in names}, {name: self.prompts[name] for name in names}
        path = user_path(path)
        write_bank(
            path,
            self.manifest.for_tasks(names),
            {
                "statistics.safetensors": lambda: statistics_to_tensors(statistics),
                "prompts.safetensors": lambda: prompts_to_tensors(prompts),
                "backbone.safetensors": lambda: self.read("backbone.safetensors"),
                **{file: functools.partial(self.read, file) for file in map(expert_file, self.finished_experts)},
            },
        )
        return ExpertBank.open(path, check="sizes")


def is_bank(path: Path) -> bool:
    """Whether there is a bank at `path`, trained or not.

    Raises:
        PathError: nobody may look.
    """
    with path_errors(path):
        return any((path / name).exists() for name in ("bank.json", JOURNAL))
