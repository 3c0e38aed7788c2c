"""The expert bank: a folder of safetensors and one `bank.json` that vouches for every byte of them (DESIGN section 7).

    bank/
      bank.json                format version, ModelConfig, DataConfig, tasks, groups, stages, sha256 and size of every file
      backbone.safetensors     stage 1
      experts/000.safetensors  stage 2, one file per expert
      router.safetensors       stage 3
      statistics.safetensors   per task: observation mean and deviation, return scale, target return
      prompts.safetensors      per task: the last steps of its best episodes
      resume/, logs/           checkpoints and learning curves; local, never copied or pushed

Weights may be stored as bfloat16 (storage.py); they are float32 for whoever reads them, and hashes are of what is stored.
No pickle anywhere. A file is verified before a tensor of it is used. Public files change only in `commit`, through a journal:

    1. <name>.next written and flushed for every changed file
    2. bank.json.next renamed into place: from here on the commit stands, whatever dies
    3. every <name>.next renamed to <name>, then bank.json.next to bank.json; `open` finishes this step if a kill cut it short
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from .. import tasks as task_table
from ..config import DataConfig, ModelConfig, stage_name
from ..data.prompts import Prompt, prompts_from_tensors, prompts_to_tensors
from ..data.stats import TaskStatistics, statistics_from_tensors, statistics_to_tensors
from ..disk import disk_space_errors, publish, require_new_folder, scratch_folder, write_file
from ..errors import BankError, ConfigError, ShapeError, StageError
from ..model.empty import empty_model
from ..tasks import TaskSpec
from .journal import JOURNAL, locked, read_manifest, refuse_strangers, remove_stale, roll_forward, verified_manifest
from .manifest import Manifest, expert_file, expert_index
from .storage import Storage, as_stored, as_used, holds_weights
from .tensor_files import FileRecord, for_each_file, read_content, read_tensors, write_tensors

if TYPE_CHECKING:
    from ..model import M3DT

Status = Literal["absent", "partial", "done"]


class ExpertBank:
    """A verified bank folder; make one with `create` or `open`."""

    def __init__(
        self, path: Path, manifest: Manifest, experts: tuple[int, ...] | None = None, *, read_only: bool = False
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._experts = experts  # None: all that there are
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
        """A new bank that knows its tasks and has no weights yet.

        Raises:
            BankError: there is a bank at `path` already, or it holds safetensors that are not ours.
            ConfigError: statistics or prompts that are not those of `tasks`.
            DiskSpaceError: no room.
        """
        path = Path(path)
        if is_bank(path):
            raise BankError(f"there is a bank at {path} already; open it, or choose another folder")
        names = tuple(spec.name for spec in task_table.resolve(tasks))
        for what, found in (("statistics", statistics), ("prompts", prompts)):
            if set(found) != set(names):
                raise ConfigError(f"{what} must be those of the bank's tasks; they differ in {sorted(set(found) ^ set(names))}")
        bank = cls(path, Manifest(config, data_config, names))
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
        check: Literal["contents", "sizes"] = "contents",
    ) -> ExpertBank:
        """The bank at `path`, every file verified; a commit that a kill cut short is finished first.

        Args:
            experts: open it as if it had only these; the files of others need not be there. None: all of the bank's.
            read_only: refuse whatever would change it.
            check: "sizes" looks only whether every file is there and as long as it should be; for who is about to use them:
                `read`, `model` and `copy_to` verify whatever they read in any case, and hashing costs more than reading.

        Raises:
            BankError: no bank there, or a file that is missing, damaged or foreign; the message names it.
            ConfigError: experts that the bank does not have.
        """
        path, chosen = Path(path), None if experts is None else tuple(experts)
        return cls(path, verified_manifest(path, chosen, check), chosen, read_only=read_only)

    def refresh(self, *, check: Literal["contents", "sizes"] = "contents") -> None:
        """Takes over what another process has committed since, checked as `open` does.

        Raises:
            BankError: as `open`.
        """
        self.manifest = verified_manifest(self.path, self._experts, check)

    def require_writable(self) -> None:
        """Checks that the bank may change.

        Raises:
            BankError: it was opened to be read, as banks in the Hub's cache and those that come with the package are.
        """
        if self._read_only:
            raise BankError(
                f"bank {self.path} must stay as it is: it is in the Hub's cache, came with the package, or was opened to be "
                "read; train in another folder (bank=…)"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the bank as it is inside the block: a `commit` elsewhere waits until it ends. The bank is verified first.

        Raises:
            BankError: as `open`, or it changes at this very moment.
        """
        self.refresh()
        with locked(self.path, fcntl.LOCK_SH):
            now = read_manifest(self.path / "bank.json")
            if (self.path / JOURNAL).exists() or self.manifest != (
                now if self._experts is None else now.with_experts(self._experts)
            ):
                raise BankError(f"bank {self.path} was changed by another process just now; try again")
            yield

    @property
    def config(self) -> ModelConfig:
        """Shape of the whole model, all experts included."""
        return self.manifest.model

    @property
    def data_config(self) -> DataConfig:
        """How statistics, prompts and target returns were made."""
        return self.manifest.data

    @property
    def storage(self) -> Storage:
        """How the weights are stored, by every `commit`; `read` and `model` give float32."""
        return self.manifest.storage

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks the bank was made for, in its order."""
        return tuple(task_table.get(name) for name in self.manifest.tasks)

    @property
    def groups(self) -> dict[str, int] | None:
        """Task → the expert trained on it; None before tasks are grouped."""
        return None if self.manifest.groups is None else dict(self.manifest.groups)

    @functools.cached_property
    def statistics(self) -> dict[str, TaskStatistics]:
        """Statistics per task, in the bank's order."""
        found = statistics_from_tensors(self.read("statistics.safetensors"))
        return {name: found[name] for name in self._complete(found, "statistics")}

    @functools.cached_property
    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """Prompts per task, in the bank's order, best first."""
        found = prompts_from_tensors(self.read("prompts.safetensors"))
        return {name: found[name] for name in self._complete(found, "prompts")}

    @property
    def finished_experts(self) -> tuple[int, ...]:
        """The experts whose training is over, ascending."""
        return self.manifest.finished_experts

    @property
    def default_experts(self) -> Literal["none", "mixture"]:
        """What an agent should use: the routed mixture if router and all experts are here, else the backbone alone."""
        complete = self.status("router") == self.status("experts") == "done"
        return "mixture" if complete else "none"

    @property
    def content_hash(self) -> str:
        """sha256 of everything that decides what the bank's agent does: configs, tasks and files."""
        manifest = self.manifest.to_dict()
        content = {key: manifest[key] for key in ("model", "data", "tasks", "files")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def status(self, stage: str | int) -> Status:
        """Whether a stage is done, partial (a checkpoint, or some of the experts), or absent.

        Raises:
            UnknownTaskError: no such stage.
        """
        stage = stage_name(stage)
        finished = len(self.finished_experts) if stage == "experts" else int(f"{stage}.safetensors" in self.manifest.files)
        if finished == (max(self.config.n_experts, 1) if stage == "experts" else 1):
            return "done"
        started = any((self.path / "resume").glob(f"{stage}-*"))
        return "partial" if finished or started else "absent"

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, verified, in memory of their own; weights are float32 however they are stored.

        Raises:
            BankError: the bank has no such file, or it is missing, damaged, or stored in another way than the bank says.
        """
        if name not in self.manifest.files:
            raise BankError(f"bank {self.path} has no {name}; it has {', '.join(sorted(self.manifest.files))}")
        return as_used(self.path / name, read_tensors(self.path / name, self.manifest.files[name]), self.storage)

    def commit(self, files: Mapping[str, Mapping[str, Tensor]], **changes: Any) -> None:
        """Replaces whole files and fields of the manifest in one step that a kill at any point either makes or does not.

        Args:
            files: name → tensors, of the names in the drawing above; weights are stored as the bank says.
            changes: fields of `Manifest` (groups, grouping, stages).

        Raises:
            ConfigError: a name or a field that no bank has. BankError: the bank is read-only.
            DiskSpaceError: no room; the bank is as before.
        """
        self.require_writable()
        journal = self.path / JOURNAL
        with locked(self.path, fcntl.LOCK_EX):
            if journal.exists():  # an earlier commit stands, but was interrupted in its last step
                roll_forward(self.path)
                self.manifest = read_manifest(self.path / "bank.json")
            try:
                remove_stale(self.path)
                stored = {name: as_stored(name, tensors, self.storage) for name, tensors in files.items()}
                records = {name: write_tensors(self.path / f"{name}.next", tensors) for name, tensors in stored.items()}
                all_files = dict(sorted((self.manifest.files | records).items()))
                manifest = dataclasses.replace(self.manifest, files=all_files, **changes)
                write_file(journal, manifest.checked().to_json())
            except BaseException:
                if not journal.exists():
                    remove_stale(self.path)
                raise
            roll_forward(self.path)
        self.manifest = manifest

    def copy_to(self, path: str | Path, *, storage: Storage | None = None) -> ExpertBank:
        """A copy of the public files (no resume/, no logs/) at `path`, whole or not at all.

        storage: of the copy's weights; None: this bank's, byte for byte. From float32 to bfloat16 they are rounded, and the
        copy is another bank, with another content hash; the way back changes no number.

        Raises:
            BankError: `path` exists and is not an empty folder, or a file of this bank is damaged.
            ConfigError: no such storage. DiskSpaceError: no room.
        """
        path = Path(path)
        require_new_folder(path)
        manifest = dataclasses.replace(self.manifest, storage=storage or self.storage).checked()
        with disk_space_errors(path), scratch_folder(path.parent) as scratch:
            records = {name: self._copy_file(name, scratch / name, manifest.storage) for name in manifest.files}
            (scratch / "bank.json").write_text(dataclasses.replace(manifest, files=records).to_json())
            publish(scratch, path)
        return ExpertBank.open(path)

    def for_tasks(self, path: str | Path, tasks: Sequence[TaskSpec | str]) -> ExpertBank:
        """A new bank at `path` for some of this one's tasks: its backbone, its experts, no router; weights in float32.

        Stage 3 fits a router to these tasks, from new weights or from this bank's (`fit_stage(..., start=bank)`).

        Raises:
            UnknownTaskError: a task that this bank has not. StageError: no backbone, or experts are missing.
            BankError: `path` exists and is not an empty folder, or a file is damaged. DiskSpaceError: no room.
        """
        path, specs = Path(path), task_table.resolve(tasks)
        names = [
            task_table.lookup({name: name for name in self.manifest.tasks}, spec.name, "task of this bank") for spec in specs
        ]
        if self.status("backbone") != "done" or self.status("experts") != "done":
            raise StageError(f"bank {self.path} is not trained as far as its experts: there is nothing to fit a router to")
        require_new_folder(path)
        weights = ["backbone.safetensors", *map(expert_file, self.finished_experts)]
        stages = {stage: record for stage, record in self.manifest.stages.items() if stage != "router"}
        groups = None if self.groups is None else {name: self.groups[name] for name in names}
        with disk_space_errors(path), scratch_folder(path.parent) as scratch:
            statistics, prompts = (
                {name: self.statistics[name] for name in names},
                {name: self.prompts[name] for name in names},
            )
            new = ExpertBank.create(scratch / "bank", self.config, names, statistics, prompts, self.data_config)
            new.commit({name: self.read(name) for name in weights}, stages=stages, groups=groups)
            publish(scratch / "bank", path)
        return ExpertBank.open(path)

    def load_router(self, model: M3DT) -> None:
        """Copies the bank's router into `model`.

        Raises:
            BankError: there is none, it is damaged, or it does not fit.
        """
        self._load_file(model, "router.safetensors")

    def _copy_file(self, name: str, target: Path, storage: Storage) -> FileRecord:
        """Writes a file of this bank to `target` as a bank of `storage` has it."""
        if storage != self.storage and holds_weights(name):
            return write_tensors(target, as_stored(name, self.read(name), storage))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(read_content(self.path / name, self.manifest.files[name]).data)
        return self.manifest.files[name]

    def model(self) -> M3DT:
        """The model as far as training has come, float32 on the CPU, in eval mode.

        Backbone only: `n_experts=0`. Some experts: all E, the unfinished ones as new (output layer zero: no effect). No router
        yet: the router is new too, so "mixture" means nothing (see `default_experts`).

        Raises:
            StageError: no backbone yet.
            BankError: a damaged file, or tensors that do not fit the bank's ModelConfig.
        """
        from ..model import M3DT

        if "backbone.safetensors" not in self.manifest.files:
            raise StageError(f"bank {self.path} has no backbone yet; run fit_stage('backbone', ...) first")
        n_experts = self.config.n_experts if self.finished_experts else 0
        changes: dict[str, Any] = {} if n_experts else {"n_experts": 0, "top_k": None}
        config = dataclasses.replace(self.config, **changes)
        complete = not n_experts or self.default_experts == "mixture"
        model = empty_model(config) if complete else M3DT(config)
        router = ["router.safetensors"] if n_experts and self.status("router") == "done" else []
        names = [*router, "backbone.safetensors", *map(expert_file, self.finished_experts)]  # the largest first
        for_each_file(lambda name: self._load_file(model, name), names)
        return model.eval()

    def load_backbone(self, model: M3DT) -> None:
        """Copies the bank's backbone into `model`.

        Raises:
            BankError: damaged, or it does not fit.
        """
        self._load_file(model, "backbone.safetensors")

    def load_expert(self, model: M3DT, expert: int, *, slot: int) -> None:
        """Copies expert `expert` of the bank into place `slot` of `model`.

        Raises:
            BankError: not finished, damaged, or it does not fit.
        """
        self._load_file(model, expert_file(expert), slot)

    def _load_file(self, model: M3DT, name: str, slot: int | None = None) -> None:
        """Copies one file into `model`, an expert to place `slot` (None: its own)."""
        tensors = self.read(name)
        with self._fitting(name):
            if name.startswith("experts/"):
                model.load_expert(expert_index(name) if slot is None else slot, tensors)
            else:
                model.load_tensors(tensors)

    @contextlib.contextmanager
    def _fitting(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ConfigError, ShapeError) as error:
            raise BankError(f"{self.path / name} does not fit this bank's model: {error}") from error

    def _complete(self, found: Mapping[str, object], what: str) -> tuple[str, ...]:
        if set(found) != set(self.manifest.tasks):
            differ = sorted(set(found) ^ set(self.manifest.tasks))
            raise BankError(f"{self.path / what}.safetensors and bank.json disagree about tasks {differ}")
        return self.manifest.tasks


def is_bank(path: Path) -> bool:
    """Whether there is a bank at `path`, finished or not."""
    return any((path / name).exists() for name in ("bank.json", JOURNAL))
