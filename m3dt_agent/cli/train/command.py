"""`m3dt train`: from datasets to a bank. What its options mean stands in request.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...jobs import RETRIES
from ..info import bank_table, describe_bank
from ..shared.options import (
    DEFAULT_ROOT,
    AllTasks,
    AsJson,
    Cache,
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
    Track,
    parse_experts,
    path_option,
    ray_cluster,
)
from ..shared.output import emit, quiet_stdout
from .request import DatasetChoice, Spread, TaskChoice, TrainRequest
from .run_file import keep_run, run_text
from .settings import setting_options, stage_configs, stages_asked, with_setting_options

Pull = Annotated[
    str | None,
    typer.Option(help="Datasets on the Hub, user/name or user/name@revision, to fetch into --root first, on every node."),
]
Bank = Annotated[Path, path_option(help="Folder of the bank; made if it does not exist.")]
StageName = Annotated[str, typer.Option(help="backbone, experts, router, or 1, 2, 3; all: one after the other.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Model and training settings: tiny, quick, small, paper; default: small, or what the bank was begun with."
    ),
]
NewExperts = Annotated[
    int | None, typer.Option(help="Experts per block of a new bank; default: the preset's, and at most one per task.")
]
OnlyExperts = Annotated[str | None, typer.Option(help="Stage 2: train only these, like 3,7; others are trained elsewhere.")]
ExpertWorkers = Annotated[
    int | None, typer.Option(help="Stage 2: processes that train experts side by side; default: this one.")
]
ExpertsPerJob = Annotated[int | None, typer.Option(help="Stage 2 in jobs: experts of each; default: those trained at once.")]
JobShard = Annotated[str | None, typer.Option(help="I/N: stage 2's every N-th job from the I-th on, for job arrays.")]
DataParallel = Annotated[
    str | None,
    typer.Option(help="With --ray, stages 1 and 3: workers that share every batch; 2:8: as many as there is room for."),
]
Config = Annotated[
    Path | None, path_option(help="A TOML file with options of this command; options that are typed come before it.")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the run as such a file, and do nothing else.")]
Resume = Annotated[bool, typer.Option(help="Continue a stage that was interrupted; --no-resume: refuse one that was begun.")]


@with_setting_options(setting_options(), "Training settings; default: the preset's")
def train_command(
    ctx: typer.Context,
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    root: Root = DEFAULT_ROOT,
    source: Source = None,
    cache: Cache = None,
    pull: Pull = None,
    bank: Bank = Path("bank"),
    stage: StageName = "all",
    preset: Preset = None,
    experts: NewExperts = None,
    only_experts: OnlyExperts = None,
    workers: ExpertWorkers = None,
    experts_per_job: ExpertsPerJob = None,
    shard: JobShard = None,
    data_parallel: DataParallel = None,
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    gpus_per_job: GpusPerJob = 0.0,
    retries: Retries = RETRIES,
    device: Device = "cpu",
    resume: Resume = True,
    track: Track = None,
    config: Config = None,
    print_config: PrintConfig = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train a bank, all stages or one. A stage that is done is kept, an interrupted one continues.

    Under torchrun, stages 1 and 3 are shared by its workers; datasets and bank are in folders that all of them see.
    """
    from ...bank.builtin import folder_to_write

    stages = stages_asked(stage, {"--only-experts": only_experts, "--shard": shard})
    cluster = ray_cluster(ray, cpus_per_job, gpus_per_job, retries)
    spread = Spread.over(
        cluster, workers=workers, experts_per_job=experts_per_job, shard=shard, retries=retries, data_parallel=data_parallel
    )
    request = TrainRequest(
        bank=folder_to_write(bank),
        stages=stages,
        by_name=stage != "all",
        configs=stage_configs(preset, stages, settings, ctx.obj.stages),
        preset=preset,
        new_experts=experts,
        only_experts=None if only_experts is None else parse_experts(only_experts),
        tasks=TaskChoice(names, all_tasks, task_set, set_seed),
        datasets=DatasetChoice(root, source, pull, cache),
        spread=spread,
        resume=resume,
        track=track,
    )
    if print_config:
        print(run_text(ctx, request.effective_configs(), preset=request.effective_preset()), end="")
    else:
        _train(ctx, request, device, as_json=as_json)


def _train(ctx: typer.Context, request: TrainRequest, device: str, *, as_json: bool) -> None:
    """Trains what is asked for; worker 0 keeps the run's file in the bank, and prints what the bank then holds."""
    from ...agent import M3DTAgent
    from ...bank import ExpertBank
    from ...training.distributed import joined, own_device
    from ...training.tracking.trackers import make_trackers

    own = own_device(device)  # before data are downloaded
    trackers = make_trackers(request.track or ())  # the same ones for all stages, so that what fails is said once
    with quiet_stdout(), joined(device) as world:
        with world.main_first():
            plan = request.plan(world)
        agent = M3DTAgent(plan.model, plan.tasks, device=own)
        for stage in plan.stages:
            request.train_stage(stage, agent, plan.data, trackers)
            if world.is_main:
                keep_run(ctx, ExpertBank.open(request.bank, check="sizes"))
    if world.is_main:
        document = describe_bank(ExpertBank.open(request.bank))
        emit(document, as_json=as_json, table=bank_table(document))
