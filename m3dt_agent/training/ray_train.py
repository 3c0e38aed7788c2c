"""Stages 1 and 3 on a Ray cluster: Ray Train starts the workers, which all run `fit_stage`, and replaces lost ones.

    fit_on_ray ─► TorchTrainer, one process per worker, in one process group ─► each: open data and bank, fit_stage

After a failure Ray restarts all workers, as many as there is room for, and the stage continues from its last checkpoint. Every
machine must see the folders of data and bank, and have m3dt-agent installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bank import ExpertBank, is_bank
from ..config import ModelConfig, Stage, TrainConfig, stage_name
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, M3DTError, StageError, WorkerError
from ..jobs import RayCluster
from ..jobs.ray_tasks import connected, require_ray
from .distributed import TIMEOUT, World, joined, require_one_worker
from .stage_inputs import create_bank
from .tracking.trackers import Trackers

if TYPE_CHECKING:
    from ray.train import TrainingFailedError


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker gets. model: the shape of the bank that worker 0 makes; None: there is a bank already."""

    stage: Stage
    data: Callable[[], TaskDatasets]
    bank: Path
    model: ModelConfig | None
    config: TrainConfig | None
    trackers: Trackers


def fit_on_ray(
    stage: str | int,
    data: TaskDatasets,
    bank: str | Path,
    config: TrainConfig | None = None,
    *,
    cluster: RayCluster,
    workers: int | tuple[int, int] = 1,
    model_config: ModelConfig | None = None,
    trackers: Trackers = (),
) -> None:
    """Trains stage 1 or 3 of the bank at `bank` on Ray. The weights are those that one worker would train, up to rounding.

    Args:
        data: made by `TaskDatasets.open` (or `hub.datasets.open_pulled`); workers open them again.
        config: of the stage, as for `fit_stage`.
        cluster: where to run. A worker reserves what a job would, and all workers are restarted as often as a job would be.
        workers: how many; or (fewest, most), then as many as there is room for, at the start and after every failure.
        model_config: of a new bank, which worker 0 makes if there is none.
        trackers: as for `fit_stage`; those of your own are pickled, and called by worker 0.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: stage 2, more workers than windows in a batch, data that cannot be reopened, or no such cluster.
        StageError: no bank, and no `model_config`.
        WorkerError: more failures than allowed.
        M3DTError: other errors of `fit_stage`, as worker 0 met them in the last attempt.
    """
    require_ray()
    work = _work(stage, data, bank, model_config, config, trackers)
    _check(work, workers if isinstance(workers, int) else workers[1])
    with (
        connected(cluster),
        tempfile.TemporaryDirectory(prefix=".ray-", dir=work.bank.parent) as scratch,  # seen by all machines, like the bank
    ):
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        gpus = {"GPU": cluster.gpus_per_job} if cluster.gpus_per_job else {}
        trainer = TorchTrainer(
            _fit,
            train_loop_config={"work": work},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=bool(gpus), resources_per_worker={"CPU": cluster.cpus_per_job, **gpus}
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=cluster.retries)),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _named(error, cluster.retries) from error


def _work(
    stage: str | int,
    data: TaskDatasets,
    bank: str | Path,
    model_config: ModelConfig | None,
    config: TrainConfig | None,
    trackers: Trackers,
) -> _Work:
    """What to send to the workers; paths are absolute, since Ray's workers run in folders of their own."""
    if data.reopen is None:
        raise ConfigError("these datasets were made in memory; only those of TaskDatasets.open can be sent to workers")
    folder = Path(bank).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = None if is_bank(folder) else model_config
    return _Work(stage=stage_name(stage), data=data.reopen, bank=folder, model=model, config=config, trackers=trackers)


def _check(work: _Work, most_workers: int) -> None:
    """Finds errors that can be found without workers."""
    world = World(0, most_workers)
    if work.stage == "experts":
        require_one_worker(world)
    if work.config is not None:
        world.rows(work.config.batch_size)
    if work.model is None and not is_bank(work.bank):
        raise StageError(f"there is no bank at {work.bank}; stage 'backbone' makes one if model_config=… is given")


def _fit(told: dict[str, _Work]) -> None:
    """What every worker runs."""
    from ray.train.torch import get_device

    from .fit import fit_stage

    work, device = told["work"], get_device()
    with joined(device) as world:
        with world.main_first():
            data = work.data()
            if work.model is not None and not is_bank(work.bank):
                create_bank(work.bank, work.model, data)
            bank = ExpertBank.open(work.bank, check="sizes")  # `fit_stage` checks the contents
        fit_stage(work.stage, data, bank, work.config, device=device, trackers=work.trackers)


def _named(error: TrainingFailedError, max_failures: int) -> M3DTError:
    """The error of worker 0 if it is one of this package, else a `WorkerError`."""
    first = getattr(error, "worker_failures", {}).get(0)
    cause = getattr(first, "_base_exc", first)
    if isinstance(cause, M3DTError) and not isinstance(cause, WorkerError):
        return cause
    return WorkerError(f"training on Ray failed more than {max_failures} times, last with: {error}")
