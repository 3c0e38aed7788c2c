"""Training in three stages on one loop: backbone, experts, router.

    fit_stage ─► planning.py: settles the config and checks that the stage can run, under the bank's lock
              ─► the stage's runs (backbone.py, experts.py, router.py), each trained by loop.py and committed to the bank

`fit_stage` continues a killed run on the same bank and ends with the weights that the run would have had. When it is called in
every worker that torchrun or Ray Train starts, the workers share the stage (distributed.py).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..bank import ExpertBank
from ..config import Stage, TrainConfig, stage_name
from ..config.checks import require_instance
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError
from ..model.determinism import cpu_threads
from ..system.disk import file_lock
from . import backbone, router
from . import experts as expert_stage
from .checkpoint import training_lock
from .distributed import World, joined, own_device, require_one_worker
from .expert_jobs import Fanout, commit_trained, train_in_jobs
from .experts import remove_finished
from .grouping import group_for_stage
from .logs import OnLog
from .loop import train
from .planning import Plan, plan_stage
from .planning.resume import check_continuable
from .run import Run
from .stage_inputs import StageInputs, check_data, data_fingerprint, require_trained_tasks
from .tracking import Guarded
from .tracking.runs import TrackedTraining, track_rows
from .tracking.trackers import Trackers, make_trackers

_RUNS: Mapping[Stage, Callable[[StageInputs[Any]], Iterator[Run]]] = {
    "backbone": backbone.runs,
    "experts": expert_stage.runs,
    "router": router.runs,
}


@dataclass(frozen=True, slots=True)
class _Reporting:
    """Who is told how training goes; arguments of `fit_stage`."""

    progress: bool | None
    on_log: OnLog | None
    trackers: tuple[Guarded, ...]


def fit_stage(
    stage: str | int,
    data: TaskDatasets,
    bank: ExpertBank,
    config: TrainConfig | None = None,
    *,
    experts: Sequence[int] | None = None,
    fanout: Fanout | None = None,
    start: ExpertBank | None = None,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    on_log: OnLog | None = None,
    trackers: Trackers = (),
) -> None:
    """Trains one stage of `bank` to its end, from wherever it is; stage 2 first groups the tasks if they are not grouped yet.

    Every worker that torchrun or Ray Train starts calls this, with a folder that all of them see (distributed.py). Afterwards
    `bank` shows what was trained, on every worker.

    Args:
        stage: backbone, experts or router, or 1, 2, 3. data: the datasets of the bank's tasks, opened with its DataConfig.
        config: of the stage. None: the one the stage was started with, else the preset that goes with the bank's model.
        experts: in stage 2, train only these (the others are trained elsewhere); None: all that are missing.
        fanout: in stage 2, train in jobs, as `Fanout` says; None: in this process.
        start: in stage 3, the bank whose router is trained further; None: a new router.
        device: where to train; "cuda" is each worker's own GPU.
        progress: True shows a bar and messages on stderr, None the bar only on a terminal, False neither.
        on_log: called with every `LogRecord`, on worker 0.
        trackers: told of the runs on worker 0: "tensorboard", "wandb", "trackio", or a `Tracker` of your own.

    Raises:
        StageError: an earlier stage is missing, or later stages build on what would change.
        ConfigError: settings that differ from those the stage was started with, or that cannot work; experts that the bank does
            not have; a device that torch cannot use here; more workers than windows in a batch, or several workers in stage 2.
        BankError: the data's tasks are not the bank's, a file is damaged, or another process trains the bank.
        DiskSpaceError: no room for the checkpoints. WorkerError: another worker failed or was lost.
        InvalidValueError: the loss became NaN or infinite; earlier checkpoints are kept.
    """
    stage = stage_name(stage)
    _require_fit(stage, data, bank)
    _require_own_stage(stage, fanout, start, on_log)
    following = make_trackers(trackers, progress)
    with joined(device) as world, contextlib.ExitStack() as stack:
        device = own_device(device)
        reporting = _Reporting(progress, on_log, following) if world.is_main else _Reporting(False, None, ())
        if stage == "experts":
            require_one_worker(world)

        def plan() -> Plan:
            stack.enter_context(training_lock(bank.path, shared=fanout is not None))
            bank.refresh()  # the one check of every file; what is read later is checked as it is read
            return plan_stage(stage, data, bank, config, experts=experts, device=device, progress=progress, world=world)

        settled = world.from_main(plan)
        _follow_main(bank, world)
        if settled.config is not None:
            inputs = StageInputs(data=data, bank=bank, config=settled.config, experts=settled.experts, start=start)
            _fit_planned(inputs, settled, fanout, device, reporting, world)


def _require_fit(stage: Stage, data: TaskDatasets, bank: ExpertBank) -> None:
    """Checks that data and bank belong together, and that the bank can be trained."""
    check_data(data, bank)
    if stage != "router":
        require_trained_tasks(bank)
    bank.require_writable()


def _require_own_stage(stage: Stage, fanout: Fanout | None, start: ExpertBank | None, on_log: OnLog | None) -> None:
    """Checks the arguments that only some stages take, and that `on_log` will not fail after hours."""
    require_instance("fanout", fanout, Fanout | None)
    require_instance("start", start, ExpertBank | None)
    require_instance("on_log", on_log, Callable | None)  # type: ignore[arg-type]  # a callable is no type to mypy
    for name, given, of in (("fanout", fanout, "experts"), ("start", start, "router")):
        if given is not None and stage != of:
            raise ConfigError(f"{name}= goes with stage {of!r}; got stage {stage!r}")


def _fit_planned(
    inputs: StageInputs[Any], plan: Plan, fanout: Fanout | None, device: torch.device, reporting: _Reporting, world: World
) -> None:
    with cpu_threads(plan.threads):
        if fanout is None:
            _fit_here(inputs, plan, device, reporting, world)
        else:
            _fit_in_jobs(inputs, plan.threads, fanout, str(device), reporting)


def _fit_here(inputs: StageInputs[Any], plan: Plan, device: torch.device, reporting: _Reporting, world: World) -> None:
    """Trains the stage's runs in this process, or with the workers of `world`."""
    bank, recorded = inputs.bank, plan.recorded
    if inputs.config.stage == "experts":
        group_for_stage(inputs, reporting.progress)
    record = _record(inputs, plan.threads)
    for run in _RUNS[inputs.config.stage](inputs):
        if recorded is not None:
            check_continuable(recorded, run.name, run.built_on, bank)
            recorded = None  # only the first run can be unfinished
        with TrackedTraining(reporting.trackers, bank, run, reporting.on_log) as on_log:
            train(
                run,
                bank.path,
                device=device,
                threads=plan.threads,
                progress=reporting.progress,
                on_log=on_log,
                world=world,
            )
            world.from_main(functools.partial(_commit, run, bank, record))
        _follow_main(bank, world)
        if inputs.config.stage == "experts":
            remove_finished(bank)


def _fit_in_jobs(inputs: StageInputs[Any], threads: int, fanout: Fanout, device: str, reporting: _Reporting) -> None:
    """Trains stage 2 in jobs; several processes may do so at once with the same bank, each with its shard.

    Trackers are told of a job when its experts are in the bank.
    """
    with file_lock(inputs.bank.path / "resume" / ".commit"):
        inputs.bank.refresh(check="sizes")
        group_for_stage(inputs, reporting.progress)
    for trained in train_in_jobs(inputs, threads, fanout, device, reporting.progress, fit_stage):
        commit_trained(inputs.bank, trained, _record(inputs, threads))
        track_rows(reporting.trackers, inputs.bank, inputs.config, trained.rows)


def _follow_main(bank: ExpertBank, world: World) -> None:
    """Lets the other workers see what worker 0 has committed."""
    if not world.is_main:
        bank.refresh(check="sizes")


def _commit(run: Run, bank: ExpertBank, record: dict[str, Any]) -> None:
    bank.commit(run.public_files(), stages=bank.manifest.stages | {run.config.stage: record})


def _record(inputs: StageInputs[Any], threads: int) -> dict[str, Any]:
    """The settings of a stage as the bank keeps them."""
    return {"config": inputs.config.to_dict(), "threads": threads, "data": data_fingerprint(inputs.data)}
