"""Stages 1 and 3 on a Ray cluster: Ray Train starts the workers, all run `fit_stage`, and lost ones are replaced.

    fit_on_ray ─► TorchTrainer, one process per worker, in one process group ─► each: open data and bank, fit_stage

After a failure Ray starts all of them anew, as many as there is room for, and the stage continues from its last checkpoint.
Data and bank are in folders that every machine sees, and m3dt-agent is installed on all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..bank import ExpertBank
from ..config import DataConfig, ModelConfig, Stage, TrainConfig, stage_name
from ..data.task_datasets import TaskDatasets
from ..errors import M3DTError, MissingDependencyError, StageError, WorkerError
from ..tasks import TaskSpec, resolve
from .distributed import TIMEOUT, World, joined, require_one_worker
from .job import create_bank

if TYPE_CHECKING:
    from ray.train import TrainingFailedError


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker is told. model: None: the bank is there."""

    stage: Stage
    root: Path
    tasks: tuple[str, ...]
    source: str | None
    data: DataConfig
    bank: Path
    model: ModelConfig | None
    config: TrainConfig | None


def fit_on_ray(
    stage: str | int,
    root: str | Path,
    tasks: Sequence[str | TaskSpec],
    bank: str | Path,
    config: TrainConfig | None = None,
    *,
    source: str | None = None,
    data_config: DataConfig | None = None,
    model_config: ModelConfig | None = None,
    workers: int | tuple[int, int],
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    max_failures: int = 3,
    address: str | None = None,
) -> None:
    """Trains stage 1 or 3 of the bank at `bank` on Ray, with the weights that one worker would give it, up to rounding.

    Args:
        root, tasks, source, data_config: as `TaskDatasets.open` takes them.
        config: of the stage, as `fit_stage` takes it.
        model_config: of a bank that is not there yet, which worker 0 makes; else unused.
        workers: how many; (fewest, most): as many of these as there is room for, at the start and after every failure.
        max_failures: how often workers are replaced; -1: for ever.
        address: of a cluster; "local": a new one on this machine, for this call; None: the one that this process is connected
            to, that RAY_ADDRESS names, or that runs on this machine, and a new one if there is none.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: stage 2, or more workers than windows in a batch. StageError: no bank, and no `model_config`.
        WorkerError: more failures than allowed. Else as `fit_stage`, of worker 0's last attempt.
    """
    ray = _ray()
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    most = workers if isinstance(workers, int) else workers[1]
    work = _work(stage, root, tasks, source, data_config, bank, model_config, config)
    _check(work, most)
    connected = ray.is_initialized()
    if not connected:
        ray.init(address=address)
    try:
        with tempfile.TemporaryDirectory(
            prefix=".ray-", dir=work.bank.parent
        ) as scratch:  # seen by all machines, like the bank
            TorchTrainer(
                _fit,
                train_loop_config={"work": work},
                torch_config=TorchConfig(
                    backend="cpu:gloo,cuda:nccl" if gpus_per_worker else "gloo", timeout_s=int(TIMEOUT.total_seconds())
                ),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=gpus_per_worker > 0,
                    resources_per_worker={"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {}),
                ),
                run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=max_failures)),
            ).fit()
    except TrainingFailedError as error:
        raise _named(error, max_failures) from error
    finally:
        if not connected:
            ray.shutdown()


def _ray() -> ModuleType:
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise MissingDependencyError("Ray is not installed: pip install 'm3dt-agent[ray]'") from error
    found: ModuleType = ray
    return found


def _work(
    stage: str | int,
    root: str | Path,
    tasks: Sequence[str | TaskSpec],
    source: str | None,
    data_config: DataConfig | None,
    bank: str | Path,
    model_config: ModelConfig | None,
    config: TrainConfig | None,
) -> _Work:
    """With absolute paths: Ray's workers run in folders of their own."""
    names = tuple(task.name for task in resolve(tasks))
    folder = Path(bank).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _Work(
        stage_name(stage),
        Path(root).absolute(),
        names,
        source,
        data_config or DataConfig(),
        folder,
        None if _is_bank(folder) else model_config,
        config,
    )


def _check(work: _Work, most_workers: int) -> None:
    """What needs no worker to see that it cannot work."""
    world = World(0, most_workers)
    if work.stage == "experts":
        require_one_worker(world)
    if work.config is not None:
        world.rows(work.config.batch_size)
    if work.model is None and not _is_bank(work.bank):
        raise StageError(f"there is no bank at {work.bank}; with model_config=… stage 'backbone' makes it")


def _is_bank(path: Path) -> bool:
    return any((path / name).exists() for name in ("bank.json", "bank.json.next"))


def _fit(told: dict[str, _Work]) -> None:
    """In every worker."""
    from ray.train.torch import get_device

    from . import fit_stage

    work, device = told["work"], get_device()
    with joined(device) as world:
        with world.main_first():
            data = TaskDatasets.open(work.root, work.tasks, work.source, config=work.data)
            if work.model is not None and not _is_bank(work.bank):
                create_bank(work.bank, work.model, data)
            bank = ExpertBank.open(work.bank)
        fit_stage(work.stage, data, bank, work.config, device=device)


def _named(error: TrainingFailedError, max_failures: int) -> M3DTError:
    """Worker 0's own error if it is one of ours."""
    first = getattr(error, "worker_failures", {}).get(0)
    cause = getattr(first, "_base_exc", first)
    if isinstance(cause, M3DTError) and not isinstance(cause, WorkerError):
        return cause
    return WorkerError(f"training on Ray failed more than {max_failures} times, last with: {error}")
