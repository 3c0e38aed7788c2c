"""`m3dt train`: from datasets to a bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..config import STAGES, DataConfig, ModelConfig, Stage, TrainConfig, stage_name, train_preset
from ..errors import ConfigError, StageError
from ..jobs import RETRIES, LocalProcesses, RayCluster
from ..tasks import TaskSpec
from .info import bank_table, describe_bank
from .options import (
    AllTasks,
    AsJson,
    CpusPerJob,
    Device,
    GpusPerJob,
    RayAddress,
    Retries,
    Root,
    SetSeed,
    Source,
    TaskNames,
    TaskSet,
    choose_tasks,
    parse_experts,
    parse_pairs,
    parse_shard,
    parse_workers,
    ray_cluster,
)
from .output import emit, quiet_stdout, say

if TYPE_CHECKING:
    from ..agent import M3DTAgent
    from ..bank import ExpertBank
    from ..data.task_datasets import TaskDatasets
    from ..training import Fanout


def train_command(
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    root: Root = Path("datasets"),
    source: Source = None,
    bank: Annotated[Path, typer.Option(help="Folder of the bank; made if it does not exist.")] = Path("bank"),
    stage: Annotated[str, typer.Option(help="backbone, experts, router, or 1, 2, 3; all: one after the other.")] = "all",
    preset: Annotated[
        str | None, typer.Option(help="Model and training: tiny, small, paper; default: small, or what the bank began with.")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="Experts per block of a new bank.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each stage trained.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per step; in stage 2 per expert.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's learning rate.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float64", "auto"] | None,
        typer.Option(help="auto: the faster of float32 and bfloat16; default: float32."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Torch's CPU threads; part of the result.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    grouping: Annotated[Literal["random", "gradient"] | None, typer.Option(help="Stage 2: how tasks are split.")] = None,
    experts_at_once: Annotated[int | None, typer.Option(help="Stage 2: experts trained together; default: what fits.")] = None,
    only_experts: Annotated[
        str | None, typer.Option(help="Stage 2: train only these, 3,7; others are trained elsewhere.")
    ] = None,
    skip_below: Annotated[
        float | None, typer.Option(help="Stage 3: leave out, step by step, experts whose weight is below this; default: 0.")
    ] = None,
    concentrate: Annotated[
        float | None, typer.Option(help="Stage 3: weight of the routers' entropy in the second half's loss; default: 0.")
    ] = None,
    guide: Annotated[
        float | None, typer.Option(help="Stage 3: weight of the cross-entropy with each window's own group; default: 0.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Stage 2: processes that train side by side; default: this one.")] = None,
    experts_per_job: Annotated[
        int | None, typer.Option(help="Stage 2 in jobs: experts of each; default: those trained at once.")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="I/N: stage 2's every N-th job from the I-th on, for job arrays.")] = None,
    data_parallel: Annotated[
        str | None,
        typer.Option(help="With --ray, stages 1 and 3: workers that share every batch; 2:8: as many as there is room for."),
    ] = None,
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    gpus_per_job: GpusPerJob = 0.0,
    retries: Retries = RETRIES,
    pull: Annotated[
        str | None,
        typer.Option(help="Datasets on the Hub, user/name or user/name@revision, to fetch into --root first, on every node."),
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps over which the learning rate rises.")] = None,
    cooldown_steps: Annotated[int | None, typer.Option(help="Last steps, over which it falls to nothing.")] = None,
    domain_weights: Annotated[
        str | None, typer.Option(help="dmcontrol:3,metaworld:2: draw tasks of these domains that many times as often.")
    ] = None,
    conflict_every: Annotated[int | None, typer.Option(help="Stage 1: measure gradient conflict every N steps.")] = None,
    early_stop: Annotated[bool, typer.Option("--early-stop", help="Stage 1: end when gradient conflict has peaked.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; default: 0.")] = None,
    device: Device = "cpu",
    resume: Annotated[
        bool, typer.Option(help="Continue a stage that was interrupted; --no-resume: refuse one that was begun.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train a bank, all stages or one. A stage that is done is kept, an interrupted one continues.

    Under torchrun, stages 1 and 3 are shared by its workers; datasets and bank are in folders that all of them see.
    """
    from ..agent import M3DTAgent
    from ..bank import ExpertBank, is_bank
    from ..bank.builtin import folder_to_write
    from ..training.distributed import joined, own_device, require_one_worker

    folder_to_write(bank)
    weights = None
    if domain_weights is not None:
        weights = parse_pairs(domain_weights, int, "a weighting of domains", "dmcontrol:3,metaworld:2")
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "cooldown_steps": cooldown_steps,
        "precision": precision,
        "threads": threads,
        "checkpoint_every": checkpoint_every,
        "domain_weights": weights,
        "seed": seed,
    }
    for_one: dict[Stage, dict[str, Any]] = {
        "backbone": {"conflict_every": conflict_every, "early_stop": early_stop or None},
        "experts": {"grouping": grouping, "experts_at_once": experts_at_once},
        "router": {"skip_below": skip_below, "concentrate": concentrate, "guide": guide},
    }
    wanted = STAGES if stage == "all" else (stage_name(stage),)
    for option, value in {"--only-experts": only_experts, "--shard": shard}.items():
        if value is not None and wanted != ("experts",):
            raise ConfigError(f"{option} goes with --stage experts; got --stage {stage}")
    configs = {name: stage_config(preset, name, settings | for_one[name]) for name in wanted}
    chosen = None if only_experts is None else parse_experts(only_experts)
    cluster = ray_cluster(ray, cpus_per_job, gpus_per_job, retries)
    spread = _Spread(cluster, _fanout(cluster, workers, experts_per_job, shard, retries), _parallel(data_parallel, cluster))
    with quiet_stdout(), joined(device) as world:
        with world.main_first():
            existing = ExpertBank.open(bank) if is_bank(bank) else None
            tasks = _tasks_to_train(existing, names, all_tasks=all_tasks, task_set=task_set, seed=set_seed)
            data_config = existing.data_config if existing else DataConfig.preset("paper" if preset == "paper" else "default")
            model_config = (
                existing.config if existing else ModelConfig.preset(preset or "small", **_given({"n_experts": experts}))
            )
            left = [
                name for name in wanted if to_train(existing, name, resume=resume, alone=stage != "all", tell=world.is_main)
            ]
            if "experts" in left:
                require_one_worker(world)
            data = _open_datasets(root, tasks, source, data_config, pull)
        agent = M3DTAgent(model_config, tasks, device=own_device(device))
        for name in left:
            _train(agent, name, data, bank, configs[name], chosen, spread)
    if world.is_main:
        document = describe_bank(ExpertBank.open(bank))
        emit(document, as_json=as_json, table=bank_table(document))


@dataclass(frozen=True, slots=True)
class _Spread:
    """Where stages run: fanout is of stage 2, parallel the workers of stages 1 and 3 on the cluster; None: in this process."""

    cluster: RayCluster | None
    fanout: Fanout | None
    parallel: int | tuple[int, int]


def _train(
    agent: M3DTAgent,
    stage: Stage,
    data: TaskDatasets,
    bank: Path,
    config: TrainConfig | None,
    experts: Sequence[int] | None,
    spread: _Spread,
) -> None:
    """One stage, here or on the cluster."""
    if stage == "experts":
        agent.fit_stage(stage, data, bank=bank, config=config, experts=experts, fanout=spread.fanout)
    elif spread.cluster is None:
        agent.fit_stage(stage, data, bank=bank, config=config)
    else:
        from ..training.ray_train import fit_on_ray

        fit_on_ray(stage, data, bank, config, cluster=spread.cluster, workers=spread.parallel, model_config=agent.config)


def _fanout(
    cluster: RayCluster | None, workers: int | None, experts_per_job: int | None, shard: str | None, retries: int
) -> Fanout | None:
    """How stage 2 is spread; None: it is not."""
    from ..training import Fanout

    if cluster is None and (workers, experts_per_job, shard) == (None, None, None):
        return None
    return Fanout(cluster or LocalProcesses(workers or 0, retries), experts_per_job, parse_shard(shard or "1/1"))


def _parallel(text: str | None, cluster: RayCluster | None) -> int | tuple[int, int]:
    """The workers of --data-parallel.

    Raises:
        ConfigError: there is no cluster for them.
    """
    if text is not None and cluster is None:
        raise ConfigError(f"--data-parallel {text} goes with --ray; without Ray, start workers with torchrun")
    return parse_workers(text or "1")


def _open_datasets(
    root: Path, tasks: Sequence[TaskSpec], source: str | None, config: DataConfig, pull: str | None
) -> TaskDatasets:
    """The datasets under `root`, fetched first from the repository `pull`, name@revision, if it is named."""
    if pull is None:
        from ..data.task_datasets import TaskDatasets

        return TaskDatasets.open(root, tasks, source, config=config)
    from ..hub.datasets import open_pulled

    repo, _, revision = pull.partition("@")
    return open_pulled(repo, root, [task.name for task in tasks], source, revision=revision or None, config=config)


def stage_config(preset: str | None, stage: Stage, settings: dict[str, Any]) -> TrainConfig | None:
    """The config of a stage: a preset with those `settings` that are not None; None, if nothing was asked for, leaves it to the
    bank."""
    given = _given(settings)
    return train_preset(preset or "small", stage, **given) if preset or given else None


def to_train(bank: ExpertBank | None, stage: Stage, *, resume: bool, alone: bool, tell: bool = True) -> bool:
    """Whether `stage` has work left; `alone`: it was asked for by name; `tell` the user if not.

    Raises:
        StageError: it was begun and `resume` is False.
    """
    status = "absent" if bank is None else bank.status(stage)
    if status != "absent" and not resume:
        raise StageError(f"stage {stage!r} of this bank is {status}, and --no-resume was given; choose another --bank")
    if status == "done" and not alone and tell:
        say(f"stage {stage}: done before, kept")
    return status != "done" or alone


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _tasks_to_train(
    bank: ExpertBank | None, names: Sequence[str] | None, *, all_tasks: bool, task_set: str | None, seed: int
) -> tuple[TaskSpec, ...]:
    """The tasks named, or those of the bank where none are."""
    if bank is not None and not names and not all_tasks and task_set is None:
        return bank.tasks
    return choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=seed)
