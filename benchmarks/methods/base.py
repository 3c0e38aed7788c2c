"""What a method gets (`Work`) and returns (`Outcome`), and how it trains: through a bank, or as one run of the loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank, is_bank
from m3dt_agent.config import STAGE_CONFIGS, ModelConfig, Stage, TrainConfig, train_preset
from m3dt_agent.data.batches import BatchSampler, derive_seed
from m3dt_agent.data.prompts import Prompt, make_prompts
from m3dt_agent.data.stats import TaskStatistics, compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, StageError
from m3dt_agent.evaluation import VectorPolicy
from m3dt_agent.model import M3DT, ExpertChoice
from m3dt_agent.model.determinism import cpu_threads, seeded
from m3dt_agent.training.checkpoint import newest_checkpoint
from m3dt_agent.training.logs import OnLog, log_file, mean_losses, read_log
from m3dt_agent.training.loop import train
from m3dt_agent.training.run import Run, StepHooks
from m3dt_agent.training.shares import Sampler
from m3dt_agent.training.stage_inputs import data_fingerprint

from ..records import FINAL, Cell, TaskIdUse
from ..settings import model_config, stage_setting
from .costs import action_flop, active_parameters, count_parameters, step_flop

Curve = list[tuple[int, float]]
ONE_RUN = ("0.75", FINAL)
"""Fractions after which a method of one run is evaluated; claims depend on whether it still improves in the last quarter."""


@dataclass(frozen=True, slots=True)
class Work:
    """One cell, its data, and a folder for everything that must survive a kill.

    progress, on_log: as for `fit_stage`. shared: a folder for what several cells of the run use; None: each cell has its own.
    workers: processes for work that they do not change (None: one per core; 0: this process).
    """

    cell: Cell
    data: TaskDatasets
    folder: Path
    device: str = "cpu"
    progress: bool | None = None
    on_log: OnLog | None = None
    shared: Path | None = None
    workers: int | None = 0

    def setting(self, name: str) -> Any:
        """A setting of the cell.

        Raises:
            KeyError: the cell has no setting of this name.
        """
        return self.cell.settings[name]

    def model_config(self, **changes: Any) -> ModelConfig:
        """The model's shape from the cell's settings, with `changes`."""
        return model_config(self.cell.settings, **changes)

    def train_config(self, stage: Stage, *, steps: int | None = None, **changes: Any) -> TrainConfig:
        """The config of a stage: the cell's settings that are fields of it, and the preset for the rest."""
        whole = self.setting(_STEPS[stage])
        names = [field.name for field in dataclasses.fields(STAGE_CONFIGS[stage])]
        values = {name: stage_setting(self.cell.settings, stage, name) for name in names if name in self.cell.settings}
        seed = self.cell.training_seed
        later = self.cell.settings.get("later_seed", seed)
        values |= {"steps": steps or whole, "seed": seed if stage == "backbone" else later}
        values |= {"cooldown_steps": round(self.cell.settings.get("cooldown", 0.0) * whole)}
        values |= {"checkpoint_every": max(50, whole // 10), "log_every": max(1, whole // 50)}
        if stage == "router":  # which the preset guides, other than the paper
            values.setdefault("guide", 0.0)
        return train_preset("small", stage, **{**values, **changes})

    def statistics(self) -> dict[str, TaskStatistics]:
        """Statistics of every task; target returns are multiplied by the cell's factor."""
        factor = float(self.cell.settings.get("target_return_factor", 1.0))
        return {
            name: dataclasses.replace(found, target_return=found.target_return * factor)
            for name, found in compute_statistics(self.data).items()
        }

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """Prompts of every task."""
        return make_prompts(self.data, self.setting("prompt_length"))


_STEPS: Mapping[Stage, str] = {"backbone": "backbone_steps", "experts": "expert_steps", "router": "router_steps"}
"""The settings of a cell that hold the steps of a stage."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained method. policy: an agent, another policy, or a behavior policy's level. Numbers are as in `records.Facts`.

    Raises:
        ConfigError: a number is negative, not finite or none of Python's, or the curve has something else than pairs.
    """

    policy: M3DTAgent | VectorPolicy | str
    parameters: int = 0
    active_parameters: int = 0
    windows: int = 0
    training_flop: float = 0.0
    action_flop: float = 0.0
    curve: Curve = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("parameters", "active_parameters", "windows", "training_flop", "action_flop"):
            value = getattr(self, name)
            if not _is_finite(value) or value < 0:
                raise ConfigError(f"{name} of a method's outcome must be a finite number >= 0; got {value!r:.100}")
        for point in self.curve:
            if not (isinstance(point, tuple) and len(point) == 2 and all(_is_finite(number) for number in point)):
                raise ConfigError(f"the curve of a method's outcome has pairs (windows, loss), both finite; got {point!r:.100}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class Method(Protocol):
    """How one method trains and acts. fractions: those of its training after which it is evaluated; the last is all of it."""

    @property
    def fractions(self) -> Sequence[str]: ...

    @property
    def task_id(self) -> TaskIdUse: ...

    def train(self, work: Work, fraction: str) -> Outcome:
        """Trains up to `fraction`, from wherever an earlier attempt ended."""


def steps_at(fraction: str, steps: int) -> int:
    """The number of steps after a fraction of `steps`."""
    return max(1, math.ceil(float(fraction) * steps))


def bank_of(
    work: Work, config: ModelConfig, statistics: Mapping[str, TaskStatistics] | None = None, *, folder: Path | None = None
) -> ExpertBank:
    """The cell's bank, or the one in `folder`; makes it if there is none."""
    path = folder or work.folder / "bank"
    if is_bank(path):
        return ExpertBank.open(path)
    return ExpertBank.create(path, config, work.data.tasks, statistics or work.statistics(), work.prompts(), work.data.config)


def train_run(
    work: Work,
    model: M3DT,
    parameters: Mapping[str, nn.Parameter],
    *,
    steps: int,
    choice: ExpertChoice = "none",
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
    name: str = "run",
    stage: Stage = "backbone",
    sampler: Sampler | None = None,
    built_on: Mapping[str, str] | None = None,
    hooks: StepHooks | None = None,
    **changes: Any,
) -> Curve:
    """Trains `parameters` of `model` for `steps` with the package's loop, from its checkpoint if there is one.

    The rest of the model is frozen. `model` must have the same weights at every call.

    Args:
        stage: the run has this stage's random streams, and its config with `changes`.
        sampler: None: batches of all tasks, with `prompts` (None: the cell's).
        built_on: hashes of what the run starts from, besides the data.

    Raises:
        BankError, StageError: as `finish_run`.
    """
    config = work.train_config(stage, steps=steps, **changes)
    run = Run(
        name=name,
        config=config,
        model=model,
        parameters=parameters,
        samplers=(sampler or run_sampler(work, model.config, config, prompts),),
        choice=choice,
        built_on={"data": data_fingerprint(work.data), **(built_on or {})},
        public_files=dict,
        hooks=hooks or StepHooks(),
    )
    return finish_run(work, run)


def finish_run(work: Work, run: Run) -> Curve:
    """Trains a run to its end, from its newest checkpoint in `<folder>/<run.name>/` if there is one.

    Raises:
        BankError: the checkpoint was started on something else. StageError: it has more steps than the run.
    """
    folder, config = work.folder / run.name, run.config
    checkpoint, _ = newest_checkpoint(folder, run.name)
    if checkpoint is not None and checkpoint.state.built_on != dict(run.built_on):
        raise BankError(f"{checkpoint.path} was started on {checkpoint.state.built_on}, not on {dict(run.built_on)}")
    if checkpoint is not None and checkpoint.state.step > config.steps:
        raise StageError(f"{checkpoint.path} has {checkpoint.state.step:,} steps, more than the {config.steps:,} of the run")
    threads = config.threads or torch.get_num_threads()
    with cpu_threads(threads):
        train(run, folder, device=work.device, threads=threads, progress=work.progress, on_log=work.on_log)
    run.model.eval()
    return read_curve(folder, config)


def read_curve(folder: Path, config: TrainConfig) -> Curve:
    """(windows seen, mean loss over the experts) at every logged step of a stage."""
    log = log_file(folder, config.stage)
    experts = len({row["expert"] for row in read_log(log)})
    return [(step * config.batch_size * experts, loss) for step, loss in mean_losses(log).items()]


def run_sampler(
    work: Work, model: ModelConfig, config: TrainConfig, prompts: Mapping[str, Sequence[Prompt]] | None = None
) -> BatchSampler:
    """Batches of all tasks of the cell."""
    return BatchSampler(
        work.data,
        work.statistics(),
        prompts or work.prompts(),
        model,
        batch_size=config.batch_size,
        tasks_per_batch=config.tasks_per_batch,
        seed=config.seed,
        stage=config.stage,
    )


def new_model(work: Work, config: ModelConfig, make: Callable[[ModelConfig], M3DT] = M3DT) -> M3DT:
    """A model with the initial weights of the cell's training seed."""
    with seeded(derive_seed(work.cell.training_seed, "backbone", 0, 0, "init"), torch.device("cpu")):
        return make(config)


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a method's training. flop: of the whole part. curve: (windows seen in this part, training loss)."""

    flop: float
    curve: Curve


def phase(
    work: Work, model: M3DT, stage: Stage, parameters: Mapping[str, nn.Parameter], choice: ExpertChoice, curve: Curve
) -> Phase:
    """A part that trained `parameters` with a stage's config, on as many windows as its curve says."""
    config = work.train_config(stage)
    per_step = step_flop(model, run_sampler(work, model.config, config), parameters, choice)
    return Phase(curve[-1][0] / config.batch_size * per_step, curve)


def outcome_of(
    work: Work, policy: M3DTAgent | VectorPolicy, model: M3DT, choice: ExpertChoice, phases: Sequence[Phase]
) -> Outcome:
    """The outcome of a model that was trained in parts, one after the other."""
    curve: Curve = []
    seen = 0
    for part in phases:
        curve += [(seen + windows, loss) for windows, loss in part.curve]
        seen = curve[-1][0]
    return Outcome(
        policy=policy,
        parameters=count_parameters(model),
        active_parameters=active_parameters(model, model.config.top_k or model.config.n_experts),
        windows=seen,
        training_flop=sum(part.flop for part in phases),
        action_flop=action_flop(model, run_sampler(work, model.config, work.train_config("backbone")), choice),
        curve=curve,
    )
