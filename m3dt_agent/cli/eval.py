"""`m3dt eval`: from a bank, or a behavior policy, to scores."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..config import EvalConfig
from ..errors import BankError
from ..jobs import RETRIES, shard_of
from .acting import chosen_experts, load_agent
from .options import (
    ActingExperts,
    ActingPrecision,
    AllTasks,
    AsJson,
    CpusPerJob,
    Device,
    GpusPerJob,
    MaxExperts,
    RayAddress,
    Retries,
    ReturnToGoMode,
    RoutingMass,
    SetSeed,
    Shard,
    StopOnSuccess,
    TaskNames,
    TaskSet,
    Workers,
    choose_tasks,
    parse_shard,
    ray_cluster,
)
from .output import emit, make_table, quiet_stdout

if TYPE_CHECKING:
    from ..bank import ExpertBank
    from ..scores import Summary


def eval_command(
    who: Annotated[str, typer.Argument(help="A bank, a folder or builtin:NAME; or a behavior policy: random, zero, expert, …")],
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    episodes: Annotated[int, typer.Option(help="Episodes per task.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of each task's first episode; the next ones count up.")] = 10_000,
    experts: ActingExperts = None,
    routing_mass: RoutingMass = None,
    max_experts: MaxExperts = None,
    precision: ActingPrecision = "float32",
    slots: Annotated[int, typer.Option(help="Environments that run at once.")] = 32,
    workers: Workers = None,
    stop_on_success: StopOnSuccess = False,
    rtg_mode: ReturnToGoMode = "rewards",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same rows, to the last bit, on every machine of this type.")
    ] = False,
    rows: Annotated[Path | None, typer.Option(help="Write every episode as one JSON line to this file.")] = None,
    video: Annotated[
        Path | None, typer.Option(help="Record the first episode of up to 16 tasks in one .gif or .mp4; see MUJOCO_GL.")
    ] = None,
    device: Device = "cpu",
    shard: Shard = "1/1",
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    gpus_per_job: GpusPerJob = 0.0,
    retries: Retries = RETRIES,
    as_json: AsJson = False,
) -> None:
    """Evaluate an agent or a behavior policy on fixed episodes."""
    from ..evaluation import evaluate, summarize, write_rows

    config = EvalConfig(episodes, seed, slots, workers, stop_on_success, rtg_mode, deterministic=deterministic)
    chosen = chosen_experts(experts, routing_mass, max_experts)
    cluster = ray_cluster(ray, cpus_per_job, gpus_per_job, retries)
    bank = _bank_to_evaluate(who)
    named = bool(names or all_tasks or task_set)
    tasks = choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=set_seed) if named or bank is None else bank.tasks
    tasks = tuple(shard_of(tasks, parse_shard(shard)))
    with quiet_stdout():
        agent = None if bank is None or (cluster and video is None) else load_agent(bank, chosen, device, precision)
        if video is not None:  # first, since it is what may not work here
            from ..evaluation.videos import record

            record(agent or who, tasks, video, config, progress=sys.stderr.isatty())
        if cluster is None:
            results = evaluate(agent or who, tasks, config)
        else:
            from ..evaluation.parallel import evaluate_in_jobs

            results = evaluate_in_jobs(bank or who, tasks, config, cluster, experts=chosen, precision=precision, device=device)
    if rows is not None:
        write_rows(rows, results)
    summary = summarize(results)
    emit(dataclasses.asdict(summary), as_json=as_json, table=_score_table(summary))


def _bank_to_evaluate(who: str) -> ExpertBank | None:
    """The bank `who`, or None if `who` is a behavior policy's level.

    Raises:
        BankError: neither a bank nor a level.
    """
    from ..bank.builtin import is_builtin, open_bank
    from ..data.behavior import SNAPSHOT_LEVELS, parse_level

    if is_builtin(who) or Path(who).is_dir():
        return open_bank(who, check="sizes")
    if parse_level(who)[0] in ("random", "zero", "scripted", *SNAPSHOT_LEVELS):
        return None
    raise BankError(
        f"{who!r} is neither a bank (a folder, or builtin:NAME) nor a behavior policy (random, zero, novice, medium, expert)"
    )


def _score_table(summary: Summary) -> Table:
    columns = ("task", "episodes", "return", "score", "95% interval", "success %")
    table = make_table(f"{summary.policy}: normalized scores", columns, [])
    for task in summary.tasks.values():
        success = "-" if task.success_rate is None else f"{100 * task.success_rate:.0f}"
        table.add_row(
            task.task,
            str(task.episodes),
            f"{task.mean_return:.1f}",
            f"{task.mean_score:.1f}",
            _interval(task.score_interval),
            success,
        )
    success = "-" if summary.success_rate is None else f"{100 * summary.success_rate:.0f}"
    table.add_section()
    table.add_row("mean", str(summary.episodes), "", f"{summary.mean_score:.1f}", _interval(summary.mean_interval), success)
    table.add_row("IQM", "", "", f"{summary.iqm_score:.1f}", _interval(summary.iqm_interval), "")
    return table


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1f} … {interval[1]:.1f}"
