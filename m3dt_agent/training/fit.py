"""Training in three stages on one loop (loop.py): backbone, experts, router, and the grouping of tasks before the second.

    fit_stage ─► settle settings (resume.py) ─► the stage's runs (backbone.py, experts.py, router.py)
              ─► each run: loop.py, checkpointed (checkpoint.py), then committed to the bank

A killed `fit_stage`, called again on the same bank, continues where it was, and ends with the weights it would have had. Called
in every worker that torchrun or Ray Train starts, it shares the stage between them (distributed.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..bank import ExpertBank
from ..config import ExpertsConfig, Stage, TrainConfig, stage_name, train_preset
from ..data.task_datasets import TaskDatasets
from ..disk import file_lock
from ..errors import BankError, ConfigError, StageError
from ..model.determinism import cpu_threads
from . import backbone, router
from . import experts as expert_stage
from .checkpoint import started_runs, training_lock
from .cost import estimate, require_disk
from .distributed import World, joined, own_device, require_one_worker
from .expert_jobs import Fanout, commit_trained, train_in_jobs
from .experts import remove_finished
from .grouping import make_groups
from .logs import OnLog, announce
from .loop import train
from .resume import Settings, check_continuable, preset_of, recorded_settings, settle
from .run import Run
from .settling import with_precision
from .stage_inputs import Job, data_fingerprint


class _Plan(NamedTuple):
    """What worker 0 has settled. config: None if nothing is left to do. recorded: how the stage was started before."""

    config: TrainConfig | None
    threads: int
    recorded: Settings | None
    experts: frozenset[int] | None


_RUNS: dict[Stage, Callable[[Job[Any]], Iterator[Run]]] = {
    "backbone": backbone.runs,
    "experts": expert_stage.runs,
    "router": router.runs,
}


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
) -> None:
    """Trains one stage of `bank` to its end, from wherever it is; groups the tasks before stage 2 if nobody has.

    In a process that torchrun or Ray Train started with others, all of them call this, and share the batches of stages 1 and 3.
    The bank is in a folder that all see; worker 0 writes it, and all have it refreshed on return.

    Args:
        stage: backbone, experts or router; or 1, 2, 3.
        data: of the bank's tasks, made with its DataConfig.
        experts: in stage 2, train only these (others are trained elsewhere, and merged on the Hub); None: all that are missing.
        fanout: in stage 2, train in jobs, as `Fanout` says; None: in this process.
        start: in stage 3, the bank whose router is trained on; None: a new router.
        config: of the stage. None: the one the stage was started with, else the preset that goes with the bank's model.
        device: where to train; "cuda" is each worker's own GPU.
        progress: a bar and messages on stderr; None: the bar only on a terminal; False: neither.
        on_log: called with every `LogRecord`, on worker 0.

    Raises:
        StageError: what the stage builds on is not there yet, or later stages build on what it would change.
        ConfigError: settings other than the stage was started with, or that cannot work; experts that the bank has not; more
            workers than windows in a batch, or several in stage 2.
        BankError: data of other tasks than the bank's, a damaged file, or another process training the bank.
        DiskSpaceError: no room for the checkpoints.
        InvalidValueError: the loss became NaN or infinite; checkpoints from before stand.
        WorkerError: another worker failed or was lost.
    """
    stage = stage_name(stage)
    bank.require_writable()
    check_data(data, bank)
    if fanout is not None and stage != "experts":
        raise ConfigError(f"fanout= goes with stage 'experts'; got stage {stage!r}")
    if start is not None and stage != "router":
        raise ConfigError(f"start= goes with stage 'router'; got stage {stage!r}")
    with joined(device) as world, contextlib.ExitStack() as stack:
        device, progress = own_device(device), progress if world.is_main else False
        if stage == "experts":
            require_one_worker(world)

        def plan() -> _Plan:
            stack.enter_context(training_lock(bank.path, shared=fanout is not None))
            return _plan(stage, data, bank, config, experts, device, progress, world)

        settled = world.from_main(plan)
        _refresh(bank, world)
        if settled.config is None:
            return
        job = Job(data, bank, settled.config, settled.experts, start)
        with cpu_threads(settled.threads):
            if fanout is None:
                _fit(job, settled.threads, settled.recorded, device, progress, on_log, world)
            else:
                _fit_in_jobs(job, settled.threads, fanout, str(device), progress)


def group_tasks(
    data: TaskDatasets, bank: ExpertBank, config: ExpertsConfig | None = None, *, progress: bool | None = None
) -> dict[str, int]:
    """Task → expert, made as `config` says and kept in the bank; what is there already, if it was made with the same settings.

    Raises:
        StageError: no backbone (for grouping by gradients), or experts were trained in other groups.
        ConfigError: more experts than tasks.
        BankError: data of other tasks than the bank's, or another process training the bank.
        WorkerError: another worker failed or was lost; in a process with others, worker 0 groups and all call this.
    """
    bank.require_writable()
    check_data(data, bank)
    with joined("cpu") as world:
        groups = world.from_main(lambda: _locked_regroup(data, bank, config, progress))
        _refresh(bank, world)
    return groups


def _locked_regroup(
    data: TaskDatasets, bank: ExpertBank, config: ExpertsConfig | None, progress: bool | None
) -> dict[str, int]:
    with training_lock(bank.path):
        bank.refresh()
        settled = with_precision(config or train_preset(preset_of(bank.config), "experts"), bank.config, "cpu")
        if not isinstance(settled, ExpertsConfig):
            raise ConfigError(f"grouping takes an ExpertsConfig; got {type(settled).__name__}")
        with cpu_threads(settled.threads or torch.get_num_threads()):
            return _regroup(Job(data, bank, settled), progress)


def _plan(
    stage: Stage,
    data: TaskDatasets,
    bank: ExpertBank,
    config: TrainConfig | None,
    experts: Sequence[int] | None,
    device: torch.device,
    progress: bool | None,
    world: World,
) -> _Plan:
    """Settles what a stage runs with, checks that it can, and says what it will cost; under the lock."""
    bank.refresh()
    _check_order(stage, bank)
    only = _checked_experts(experts, stage, bank)
    remove_finished(bank)
    recorded = recorded_settings(bank, stage)
    config, threads = settle(config, recorded, bank, stage, device)
    rows = world.rows(config.batch_size)
    if _is_finished(stage, bank, config, recorded, data) or (only is not None and only <= set(bank.finished_experts)):
        announce(f"{stage} stage of {bank.path} is finished already ({config.steps:,} steps); nothing to do", progress)
        return _Plan(None, threads, recorded, only)
    require_disk(stage, config, bank.config, bank.path)
    if progress is not False:
        own = dataclasses.replace(config, threads=threads)
        if world.size > 1:
            own = dataclasses.replace(own, batch_size=len(rows), tasks_per_batch=None)
        cost = estimate(stage, own, bank.config, device=device)
        announce(f"{cost}" + f", on each of {world.size} workers, if they wait for nothing" * (world.size > 1), progress)
    return _Plan(config, threads, recorded, only)


def _refresh(bank: ExpertBank, world: World) -> None:
    """Lets the others see what worker 0 has committed."""
    if not world.is_main:
        bank.refresh()


def check_data(data: TaskDatasets, bank: ExpertBank) -> None:
    """Checks that `data` is of the bank's tasks, in its order, prepared as its statistics were.

    Raises:
        BankError: it is not; the message names both.
    """
    found, wanted = tuple(task.name for task in data.tasks), bank.manifest.tasks
    if found != wanted:
        differ = f"only in the data: {sorted(set(found) - set(wanted))}, only in the bank: {sorted(set(wanted) - set(found))}"
        what = differ if set(found) != set(wanted) else f"in another order: data {list(found)}, bank {list(wanted)}"
        raise BankError(f"bank {bank.path} was made for other tasks than the data's; {what}")
    if data.config != bank.data_config:
        raise BankError(f"bank {bank.path} was made with {bank.data_config}; the data were opened with {data.config}")


def _check_order(stage: Stage, bank: ExpertBank) -> None:
    if stage != "backbone" and bank.config.n_experts == 0:
        raise ConfigError(f"bank {bank.path} has n_experts=0: it has no {stage} stage")
    if stage != "backbone" and "backbone.safetensors" not in bank.manifest.files:
        raise StageError(
            f"the {stage} stage builds on the backbone, which bank {bank.path} has not got; fit_stage('backbone') first"
        )
    missing = sorted(set(range(bank.config.n_experts)) - set(bank.finished_experts))
    if stage == "router" and missing:
        raise StageError(
            f"the router stage builds on all experts; bank {bank.path} lacks {missing}; fit_stage('experts') first"
        )


def _checked_experts(chosen: Sequence[int] | None, stage: Stage, bank: ExpertBank) -> frozenset[int] | None:
    if chosen is None:
        return None
    if stage != "experts":
        raise ConfigError(f"experts={list(chosen)} goes with stage 'experts'; got stage {stage!r}")
    if not chosen or any(type(e) is not int or not 0 <= e < bank.config.n_experts for e in chosen):
        raise ConfigError(f"experts must be some of 0 … {bank.config.n_experts - 1}; got {list(chosen)}")
    return frozenset(chosen)


def _is_finished(stage: Stage, bank: ExpertBank, config: TrainConfig, recorded: Settings | None, data: TaskDatasets) -> bool:
    """Whether nothing is left to do; if the stage is in the bank but more is asked, whether that can be done is checked."""
    done = bank.status(stage) == "done"
    public = bank.manifest.stages.get(stage)
    if recorded is None or public is None:
        return done
    fingerprint = data_fingerprint(data)
    if recorded.data != fingerprint:
        raise BankError(
            f"the {stage} stage of bank {bank.path} was trained on data {recorded.data[:12]}; "
            f"the data given are {fingerprint[:12]}"
        )
    reached = public["config"]["steps"]
    if config.steps <= reached:
        return done
    if stage == "backbone" and bank.finished_experts:
        raise StageError(
            f"experts {list(bank.finished_experts)} of bank {bank.path} were trained on its backbone; it cannot grow"
        )
    if stage == "experts" or recorded.run is None:
        raise StageError(
            f"the {stage} stage of bank {bank.path} has results of {reached:,} steps and no checkpoint to train them on "
            f"to {config.steps:,}; train another bank"
        )
    return False


def _fit(
    job: Job[Any],
    threads: int,
    recorded: Settings | None,
    device: torch.device,
    progress: bool | None,
    on_log: OnLog | None,
    world: World,
) -> None:
    stage, bank = job.config.stage, job.bank
    if stage == "experts" and bank.groups is None:
        _group(job, progress)
    record = _record(job, threads)
    for run in _RUNS[stage](job):
        if recorded is not None:
            check_continuable(recorded, run.name, run.built_on, bank)
            recorded = None  # only the first run can have been begun
        train(run, bank.path, device=device, threads=threads, progress=progress, on_log=on_log, world=world)
        world.from_main(functools.partial(_commit, run, bank, record))
        _refresh(bank, world)
        if stage == "experts":
            remove_finished(bank)


def _commit(run: Run, bank: ExpertBank, record: dict[str, Any]) -> None:
    bank.commit(run.public_files(), stages=bank.manifest.stages | {run.config.stage: record})


def _fit_in_jobs(job: Job[Any], threads: int, fanout: Fanout, device: str, progress: bool | None) -> None:
    """Stage 2 in jobs; several processes may do so at once with the same bank, each with its shard."""
    with file_lock(job.bank.path / "resume" / ".commit"):
        job.bank.refresh()
        if job.bank.groups is None:
            _group(job, progress)
    for trained in train_in_jobs(job, threads, fanout, device, progress, fit_stage):
        commit_trained(job.bank, trained, _record(job, threads))


def _record(job: Job[Any], threads: int) -> dict[str, Any]:
    """What the bank keeps of a stage's settings."""
    return {"config": dataclasses.asdict(job.config), "threads": threads, "data": data_fingerprint(job.data)}


def _regroup(job: Job[ExpertsConfig], progress: bool | None) -> dict[str, int]:
    """The bank's groups if they were made with these settings, else new ones."""
    bank = job.bank
    if bank.groups is not None and bank.manifest.grouping == _grouping_settings(job.config):
        return bank.groups
    if bank.finished_experts or started_runs(bank.path, "experts"):
        raise StageError(
            f"experts of bank {bank.path} are trained in groups made with {bank.manifest.grouping}; they cannot change"
        )
    return _group(job, progress)


def _group(job: Job[ExpertsConfig], progress: bool | None) -> dict[str, int]:
    bank = job.bank
    if job.config.grouping == "gradient" and "backbone.safetensors" not in bank.manifest.files:
        raise StageError(
            f"grouping by gradients needs a backbone, which bank {bank.path} has not got; fit_stage('backbone') first"
        )
    announce(f"grouping {len(job.data.tasks)} tasks for {bank.config.n_experts} experts ({job.config.grouping})", progress)
    groups = make_groups(job)
    bank.commit({}, groups=groups, grouping=_grouping_settings(job.config))
    return groups


def _grouping_settings(config: ExpertsConfig) -> dict[str, Any]:
    """The fields that decide the groups."""
    if config.grouping == "random":
        return {"grouping": config.grouping, "seed": config.seed}
    names = ("grouping", "seed", "grouping_batches", "grouping_runs", "batch_size", "grad_clip", "precision")
    return {name: getattr(config, name) for name in names}
