"""What a bank holds: `BankContents`, the reading half of `ExpertBank`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor

from ..config import DataConfig, ModelConfig, stage_name
from ..data.prompts import Prompt, prompts_from_tensors
from ..data.stats import TaskStatistics, statistics_from_tensors
from ..errors import BankError, ConfigError, InvalidValueError, ShapeError, StageError
from ..model.empty import EmptyModel
from ..model.grown import model_to_act
from ..tasks import TaskSpec
from .growth import Growth
from .journal import current_file, read_weights
from .manifest import Manifest, expert_file, expert_index
from .sizes import expert_config, fitting_prompts, fitting_statistics, require_expert_fits, require_fit
from .storage import Storage
from .tensor_files import for_each_file

if TYPE_CHECKING:
    from ..model import M3DT

T = TypeVar("T")
Status = Literal["absent", "partial", "done"]


class BankContents:
    """The files of a bank folder, as its manifest lists them. Each is verified when it is read."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def config(self) -> ModelConfig:
        """The shape of the whole model, with all experts."""
        return self.manifest.model

    @property
    def data_config(self) -> DataConfig:
        """How the statistics, prompts and target returns were made."""
        return self.manifest.data

    @property
    def storage(self) -> Storage:
        """How the weights are stored; `read` and `model` give float32 in either case."""
        return self.manifest.storage

    @property
    def version(self) -> str:
        """What its maker calls this edition of the bank, as in "2"; "": nothing. It changes no action and no hash."""
        return self.manifest.version

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks that the bank acts in, in its order. A spec in it makes no environment by itself (`envs.make_env`)."""
        return tuple(self.manifest.task(name) for name in self.manifest.all_tasks)

    @property
    def growths(self) -> tuple[Growth, ...]:
        """The tasks that came after the stages, with experts of their own: one entry for each time the bank has grown."""
        return self.manifest.grown

    @property
    def groups(self) -> dict[str, int] | None:
        """Task name → the expert trained on it; None before the tasks are grouped.

        Tasks that were only shown are not in it, and those of growths have groups of their own.
        """
        return None if self.manifest.groups is None else dict(self.manifest.groups)

    @functools.cached_property
    def statistics(self) -> dict[str, TaskStatistics]:
        """Statistics per task, in the bank's order."""
        parts = [("statistics.safetensors", self.manifest.tasks), *((g.statistics_file, g.tasks) for g in self.growths)]
        all_found: dict[str, TaskStatistics] = {}
        for file, names in parts:
            found = self._made_of(file, lambda t: fitting_statistics(statistics_from_tensors(t), self.tasks))
            all_found |= {name: found[name] for name in self._complete(found, names, file)}
        return all_found

    @functools.cached_property
    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """Prompts per task, in the bank's order, best first."""
        parts = [("prompts.safetensors", self.manifest.tasks), *((g.prompts_file, g.tasks) for g in self.growths)]
        all_found: dict[str, tuple[Prompt, ...]] = {}
        for file, names in parts:
            found = self._made_of(file, prompts_from_tensors)
            for name in self._complete(found, names, file):
                fits = functools.partial(fitting_prompts, found, [self.manifest.task(name)], self.config_of(name))
                all_found[name] = self._checked(file, fits)[name]
        return all_found

    def config_of(self, task: str) -> ModelConfig:
        """The shape of the model that acts on a task: the bank's or, if it has grown by the task, that of the new expert."""
        experts = {name: expert for growth in self.growths for name, expert in growth.groups.items()}
        return expert_config(self.manifest, experts[task]) if task in experts else self.config

    @property
    def widest(self) -> ModelConfig:
        """The bank's config, or one that is wide and long enough for the tasks by which it has grown too."""
        return self.config.for_tasks(self.manifest.task(name) for growth in self.growths for name in growth.tasks)

    def grown_models(self, model: M3DT) -> dict[str, M3DT]:
        """Task → the model that acts on it, for the tasks of all trained experts that the bank has grown by.

        They share the memory of the backbone of `model`, which the bank's `model` has made, and use their expert 0.

        Raises:
            BankError: a damaged file, or tensors that do not fit.
        """
        found: dict[str, M3DT] = {}
        for growth in self.growths:
            for expert in growth.experts:
                if expert in self.manifest.all_experts:
                    config, file = expert_config(self.manifest, expert), expert_file(expert)
                    require_expert_fits(self.manifest, expert, self.path)
                    tensors = self.read(file)
                    grown = self._checked(file, functools.partial(model_to_act, model, config, tensors))
                    found |= dict.fromkeys(growth.members(expert), grown)
        return found

    @property
    def finished_experts(self) -> tuple[int, ...]:
        """The numbers of the trained experts of stage 2, ascending."""
        return self.manifest.finished_experts

    @property
    def missing_experts(self) -> tuple[int, ...]:
        """The numbers of the experts of stage 2 that are not trained yet, ascending."""
        return tuple(sorted(set(range(self.config.n_experts)) - set(self.finished_experts)))

    @property
    def default_experts(self) -> Literal["none", "mixture"]:
        """What an agent should use: the mixture if the router and all experts are trained, else only the backbone."""
        return "mixture" if self.is_done("router") and self.is_done("experts") else "none"

    @property
    def acts_with(self) -> Literal["none", "mixture", "routed"]:
        """What its agent does unless told otherwise: as `default_experts`, but "routed" where stage 3 concentrated the router.

        Then the heaviest experts alone act, those that `agent.choice.default_experts` names.
        """
        concentrated = self.manifest.stages.get("router", {}).get("config", {}).get("concentrate", 0.0) > 0
        return "routed" if concentrated and self.default_experts == "mixture" else self.default_experts

    @property
    def content_hash(self) -> str:
        """sha256 of everything that determines what the bank's agent does: configs, tasks and files."""
        return self.manifest.content_hash

    def status(self, stage: str | int) -> Status:
        """How far a stage is: "done", "partial" (some of the experts are trained, or there is a checkpoint) or "absent".

        Raises:
            UnknownTaskError: no such stage.
        """
        stage = stage_name(stage)
        if stage == "experts":
            finished, done = bool(self.finished_experts), self.config.n_experts > 0 and not self.missing_experts
        else:
            finished = done = f"{stage}.safetensors" in self.manifest.files
        if done:
            return "done"
        started = any((self.path / "resume").glob(f"{stage}-*"))
        return "partial" if finished or started else "absent"

    def is_done(self, stage: str | int) -> bool:
        """Whether the bank has all files of a stage. In a bank with `n_experts=0`, only the backbone can be done.

        Raises:
            UnknownTaskError: no such stage.
        """
        return self.status(stage) == "done"

    def read(self, name: str) -> dict[str, Tensor]:
        """Reads and verifies one file; the tensors are copies in memory, and weights are float32 however they are stored.

        Raises:
            BankError: the bank has no such file, or it is missing, damaged, or not stored as bank.json says.
        """
        if name not in self.manifest.files:
            raise BankError(f"bank {self.path} has no {name}; it has {', '.join(sorted(self.manifest.files))}")
        return read_weights(self.path, name, self.manifest)

    def file(self, name: str) -> Path:
        """Where the bank's file `name` is; an interrupted commit that nobody has finished may have it under another name."""
        return current_file(self.path, name)

    def model(self) -> M3DT:
        """The model with everything trained so far, float32 on the CPU, in eval mode.

        Before any expert is trained, it has `n_experts=0`. If only some are, it has all E, and the others' output layers are
        zero, so that they have no effect. If the router is not trained, its weights are new (see `default_experts`).

        Raises:
            StageError: the backbone is not trained.
            BankError: a damaged file, or tensors that do not fit the bank's ModelConfig.
        """
        from ..model import M3DT

        if not self.is_done("backbone"):
            raise StageError(f"bank {self.path} has no backbone yet; run fit_stage('backbone', ...) first")
        n_experts = self.config.n_experts if self.finished_experts else 0
        changes: dict[str, Any] = {} if n_experts else {"n_experts": 0, "top_k": None}
        config = dataclasses.replace(self.config, **changes)
        complete = not n_experts or self.default_experts == "mixture"
        require_fit(self.manifest, config, self.path)
        model = EmptyModel(config) if complete else M3DT(config)
        router = ["router.safetensors"] if n_experts and self.is_done("router") else []
        names = [*router, "backbone.safetensors", *map(expert_file, self.finished_experts)]  # the largest first
        for_each_file(lambda name: self._load(model, name), names)
        if isinstance(model, EmptyModel):
            try:
                model = model.finished()
            except ConfigError as error:
                raise BankError(f"bank {self.path} lacks weights of its model: {error}") from error
        return model.eval()

    def load_backbone(self, model: M3DT) -> None:
        """Copies the bank's backbone into `model`.

        Raises:
            BankError: it is not trained, is damaged, or does not fit.
        """
        self._load(model, "backbone.safetensors")

    def load_expert(self, model: M3DT, expert: int, *, slot: int) -> None:
        """Copies expert `expert` of the bank into place `slot` of `model`.

        Raises:
            BankError: it is not trained, is damaged, or does not fit.
        """
        self._load(model, expert_file(expert), slot)

    def load_router(self, model: M3DT) -> None:
        """Copies the bank's router into `model`.

        Raises:
            BankError: it is not trained, is damaged, or does not fit.
        """
        self._load(model, "router.safetensors")

    def _load(self, model: M3DT | EmptyModel, name: str, slot: int | None = None) -> None:
        """Copies one file into `model`; an expert to place `slot`, or to its own if that is None."""
        tensors = self.read(name)
        try:
            if name.startswith("experts/"):
                model.load_expert(expert_index(name) if slot is None else slot, tensors)
            else:
                model.load_tensors(tensors)
        except (ConfigError, ShapeError, InvalidValueError) as error:
            raise BankError(f"{self.path / name} does not fit this bank's model: {error}") from error

    def _made_of(self, name: str, make: Callable[[Mapping[str, Tensor]], T]) -> T:
        """What `make` makes of the tensors of one file."""
        tensors = self.read(name)
        return self._checked(name, lambda: make(tensors))

    def _checked(self, name: str, make: Callable[[], T]) -> T:
        """What `make` makes of the content of a file."""
        try:
            return make()
        except (ConfigError, InvalidValueError, ShapeError) as error:
            raise BankError(f"{self.path / name} is damaged or foreign: {error}") from error

    def _complete(self, found: Mapping[str, object], names: tuple[str, ...], file: str) -> tuple[str, ...]:
        if set(found) != set(names):
            differ = sorted(set(found) ^ set(names))
            raise BankError(f"{self.path / file} and bank.json disagree about tasks {differ}")
        return names
