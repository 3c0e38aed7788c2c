"""The expert bank: a folder of safetensors and one `bank.json` that vouches for every byte of them (DESIGN section 7).

    bank/
      bank.json                format version, ModelConfig, DataConfig, tasks, groups, stages, sha256 and size of every file
      backbone.safetensors     stage 1
      experts/000.safetensors  stage 2, one file per expert
      router.safetensors       stage 3
      statistics.safetensors   per task: observation mean and deviation, return scale, target return
      prompts.safetensors      per task: the last steps of its best episodes
      resume/, logs/           checkpoints and learning curves; local, never copied or pushed

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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from . import tasks as task_table
from .bank_files import (
    Manifest,
    expert_file,
    read_bytes,
    read_tensors,
    verify,
    write_tensors,
    write_text,
)
from .config import DataConfig, ModelConfig, stage_name
from .data.disk import disk_space_errors, flush, publish, scratch_folder
from .data.prompts import Prompt, prompts_from_tensors, prompts_to_tensors
from .data.stats import TaskStatistics, statistics_from_tensors, statistics_to_tensors
from .errors import BankError, ConfigError, ShapeError, StageError
from .tasks import TaskSpec

if TYPE_CHECKING:
    from .model import M3DT

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
        if (path / "bank.json").exists() or (path / "bank.json.next").exists():
            raise BankError(f"there is a bank at {path} already; open it, or choose another folder")
        names = tuple(spec.name for spec in task_table.resolve(tasks))
        for what, found in (("statistics", statistics), ("prompts", prompts)):
            if set(found) != set(names):
                raise ConfigError(f"{what} must be those of the bank's tasks; they differ in {sorted(set(found) ^ set(names))}")
        bank = cls(path, Manifest(config, data_config, names))
        path.mkdir(parents=True, exist_ok=True)
        _refuse_strangers(path, bank.manifest)
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
    def open(cls, path: str | Path, *, experts: Iterable[int] | None = None, read_only: bool = False) -> ExpertBank:
        """The bank at `path`, every file verified; a commit that a kill cut short is finished first.

        experts: open it as if it had only these; the files of others need not be there. None: all of the bank's. read_only:
        refuse whatever would change it.

        Raises:
            BankError: no bank there, or a file that is missing, damaged or foreign; the message names it.
            ConfigError: experts that the bank does not have.
        """
        path, chosen = Path(path), None if experts is None else tuple(experts)
        return cls(path, _verified_manifest(path, chosen), chosen, read_only=read_only)

    def refresh(self) -> None:
        """Takes over what another process has committed since, every file verified.

        Raises:
            BankError: as `open`.
        """
        self.manifest = _verified_manifest(self.path, self._experts)

    def require_writable(self) -> None:
        """Checks that the bank may change.

        Raises:
            BankError: it was opened to be read, as banks in the Hub's cache are.
        """
        if self._read_only:
            raise BankError(
                f"bank {self.path} is in the Hub's cache, which must stay as it is; train in another folder (bank=…)"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the bank as it is inside the block: a `commit` elsewhere waits until it ends. The bank is verified first.

        Raises:
            BankError: as `open`, or it changes at this very moment.
        """
        self.refresh()
        with _locked(self.path, fcntl.LOCK_SH):
            now = _read_manifest(self.path / "bank.json")
            if (self.path / "bank.json.next").exists() or self.manifest != (
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
        """The tensors of one file, verified, in memory of their own.

        Raises:
            BankError: the bank has no such file, or it is missing or damaged.
        """
        if name not in self.manifest.files:
            raise BankError(f"bank {self.path} has no {name}; it has {', '.join(sorted(self.manifest.files))}")
        return read_tensors(self.path / name, self.manifest.files[name])

    def commit(self, files: Mapping[str, Mapping[str, Tensor]], **changes: Any) -> None:
        """Replaces whole files and fields of the manifest in one step that a kill at any point either makes or does not.

        Args:
            files: name → tensors, of the names in the drawing above.
            changes: fields of `Manifest` (groups, grouping, stages).

        Raises:
            ConfigError: a name or a field that no bank has. BankError: the bank is read-only.
            DiskSpaceError: no room; the bank is as before.
        """
        self.require_writable()
        journal = self.path / "bank.json.next"
        with _locked(self.path, fcntl.LOCK_EX):
            if journal.exists():  # an earlier commit stands, but was interrupted in its last step
                _roll_forward(self.path)
                self.manifest = _read_manifest(self.path / "bank.json")
            try:
                _remove_stale(self.path)
                records = {name: write_tensors(self.path / f"{name}.next", tensors) for name, tensors in files.items()}
                manifest = dataclasses.replace(self.manifest, files=self.manifest.files | records, **changes)
                write_text(journal, manifest.checked().to_json())
            except BaseException:
                if not journal.exists():
                    _remove_stale(self.path)
                raise
            _roll_forward(self.path)
        self.manifest = manifest

    def copy_to(self, path: str | Path) -> ExpertBank:
        """A copy of the public files (no resume/, no logs/) at `path`, whole or not at all.

        Raises:
            BankError: `path` exists and is not an empty folder, or a file of this bank is damaged.
            DiskSpaceError: no room.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise BankError(f"{path} exists and is not an empty folder; a bank is saved into a new one")
        with disk_space_errors(path), scratch_folder(path.parent) as scratch:
            for name in self.manifest.files:
                (scratch / name).parent.mkdir(exist_ok=True)
                (scratch / name).write_bytes(read_bytes(self.path / name, self.manifest.files[name]))
            (scratch / "bank.json").write_text(self.manifest.to_json())
            publish(scratch, path)
        return ExpertBank.open(path)

    def model(self) -> M3DT:
        """The model as far as training has come, float32 on the CPU, in eval mode.

        Backbone only: `n_experts=0`. Some experts: all E, the unfinished ones as new (output layer zero: no effect). No router
        yet: the router is new too, so "mixture" means nothing (see `default_experts`).

        Raises:
            StageError: no backbone yet.
            BankError: a damaged file, or tensors that do not fit the bank's ModelConfig.
        """
        from .model import M3DT

        if "backbone.safetensors" not in self.manifest.files:
            raise StageError(f"bank {self.path} has no backbone yet; run fit_stage('backbone', ...) first")
        n_experts = self.config.n_experts if self.finished_experts else 0
        changes: dict[str, Any] = {} if n_experts else {"n_experts": 0, "top_k": None}
        model = M3DT(dataclasses.replace(self.config, **changes))
        self.load_backbone(model)
        for e in self.finished_experts:
            self.load_expert(model, e, slot=e)
        if n_experts and self.status("router") == "done":
            with self._fitting("router.safetensors"):
                model.load_tensors(self.read("router.safetensors"))
        return model.eval()

    def load_backbone(self, model: M3DT) -> None:
        """Copies the bank's backbone into `model`.

        Raises:
            BankError: damaged, or it does not fit.
        """
        with self._fitting("backbone.safetensors"):
            model.load_tensors(self.read("backbone.safetensors"))

    def load_expert(self, model: M3DT, expert: int, *, slot: int) -> None:
        """Copies expert `expert` of the bank into place `slot` of `model`.

        Raises:
            BankError: not finished, damaged, or it does not fit.
        """
        name = expert_file(expert)
        with self._fitting(name):
            model.load_expert(slot, self.read(name))

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


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    """Holds the bank's folder: alone (LOCK_EX) while its files change, with other readers (LOCK_SH) while they are verified."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise BankError(f"no bank at {path}: bank.json is missing") from None
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _verified_manifest(path: Path, experts: tuple[int, ...] | None = None) -> Manifest:
    journal = path / "bank.json.next"
    while True:
        with _locked(path, fcntl.LOCK_SH):
            if not journal.exists():
                whole = _read_manifest(path / "bank.json")
                manifest = whole if experts is None else whole.with_experts(experts)
                for name, record in manifest.files.items():
                    verify(path / name, record)
                _refuse_strangers(path, whole)
                return manifest
        with _locked(path, fcntl.LOCK_EX):
            if journal.exists():
                _roll_forward(path)


def _read_manifest(file: Path) -> Manifest:
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise BankError(f"no bank at {file.parent}: {file.name} is missing") from None
    except UnicodeDecodeError as error:
        raise BankError(f"{file} is damaged or foreign: {error}") from error
    return Manifest.from_json(text, file)


def _roll_forward(path: Path) -> None:
    """Step 3 of a commit, under the lock."""
    journal = path / "bank.json.next"
    manifest = _read_manifest(journal)
    for name, record in manifest.files.items():
        staged = path / f"{name}.next"
        if staged.exists():
            verify(staged, record)
            os.replace(staged, path / name)
    for folder in {(path / name).parent for name in manifest.files}:
        flush(folder)
    os.replace(journal, path / "bank.json")
    flush(path)


def _remove_stale(path: Path) -> None:
    """Removes what a commit that never came to stand has left."""
    for staged in [*path.glob("*.safetensors.next"), *path.glob("experts/*.safetensors.next")]:
        staged.unlink(missing_ok=True)


def _refuse_strangers(path: Path, manifest: Manifest) -> None:
    for file in sorted([*path.glob("*.safetensors"), *path.glob("experts/*.safetensors")]):
        if (name := file.relative_to(path).as_posix()) not in manifest.files:
            raise BankError(f"{path} holds {name}, which its bank.json does not know: a foreign file; move it elsewhere")
