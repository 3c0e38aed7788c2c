"""`m3dt eval`: scores of a bank or of a behavior policy."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import EvalConfig
from ..errors import ConfigError, M3DTError, UnwrittenRowsError
from ..jobs import RETRIES, RayCluster, shard_of
from ..system.machine import shows_progress
from ..tasks import TaskSpec
from .shared.acting import Acting, find_policy
from .shared.options import (
    ActingExperts,
    ActingPrecision,
    AllTasks,
    AsJson,
    CpusPerJob,
    Device,
    GpusPerJob,
    MaxExperts,
    PromptFrom,
    RayAddress,
    Retries,
    ReturnToGoMode,
    RoutingMass,
    SetSeed,
    Shard,
    Source,
    StopOnSuccess,
    TaskNames,
    TaskSet,
    Track,
    Workers,
    choose_tasks,
    parse_shard,
    path_argument,
    path_option,
    ray_cluster,
)
from .shared.output import TextTable, emit, make_table, quiet_stdout, say

if TYPE_CHECKING:
    from ..agent import M3DTAgent
    from ..bank import ExpertBank
    from ..scores import Summary
    from ..scores.rows import EpisodeResult
    from ..training.tracking import Guarded

DEFAULTS = EvalConfig()

Who = Annotated[
    str,
    path_argument(help="A bank (a folder, or builtin:NAME), or a behavior policy: random, zero, novice, medium or expert."),
]
Episodes = Annotated[int, typer.Option(help="Episodes per task.")]
FirstSeed = Annotated[int, typer.Option(help="Seed of each task's first episode; the next episodes have the next seeds.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Give the same rows, to the last bit, on every machine of this type.")
]
Rows = Annotated[
    Path | None,
    path_option(
        help="Keep every episode in this file, a JSON line each, when it ends; an interrupted evaluation continues from it."
    ),
]
Video = Annotated[
    Path | None,
    path_option(help="Record the first episode of up to 16 tasks in one .gif, .webp or .mp4; MUJOCO_GL chooses the renderer."),
]


def eval_command(
    who: Who,
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    episodes: Episodes = DEFAULTS.episodes,
    seed: FirstSeed = DEFAULTS.seed,
    experts: ActingExperts = None,
    routing_mass: RoutingMass = None,
    max_experts: MaxExperts = None,
    precision: ActingPrecision = "float32",
    slots: Annotated[int, typer.Option(help="Environments that run at once.")] = DEFAULTS.slots,
    workers: Workers = None,
    stop_on_success: StopOnSuccess = False,
    rtg_mode: ReturnToGoMode = "rewards",
    deterministic: Deterministic = False,
    rows: Rows = None,
    video: Video = None,
    prompt_from: PromptFrom = None,
    source: Source = None,
    device: Device = "cpu",
    shard: Shard = "1/1",
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    gpus_per_job: GpusPerJob = 0.0,
    retries: Retries = RETRIES,
    track: Track = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a bank's agent or a behavior policy on fixed episodes.

    Without task names, a bank is evaluated on all of its tasks.
    """
    from ..training.tracking.trackers import make_trackers

    config = EvalConfig(
        episodes=episodes,
        seed=seed,
        slots=slots,
        workers=workers,
        stop_on_success=stop_on_success,
        rtg_mode=rtg_mode,
        deterministic=deterministic,
    )
    acting = Acting.from_options(experts, routing_mass, max_experts, precision, device, prompt_from, source)
    cluster = ray_cluster(ray, cpus_per_job, gpus_per_job, retries)
    policy = find_policy(who)
    _require_bank_options(policy, who, track, prompt_from, cluster)
    following = make_trackers(track or ())
    first = () if isinstance(policy, str) else policy.tasks
    named = names or all_tasks or task_set or not first
    tasks = choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=set_seed, first=first) if named else first
    mine = tuple(shard_of(tasks, parse_shard(shard)))
    with quiet_stdout(), _telling_what_is_kept():
        results, unwritten = _unwritten_aside(lambda: _evaluate(policy, mine, config, acting, cluster, rows, video))
    _tell(results, policy, config, following, as_json=as_json)
    if unwritten is not None:
        raise unwritten


def _tell(
    results: Sequence[EpisodeResult],
    policy: ExpertBank | str,
    config: EvalConfig,
    following: tuple[Guarded, ...],
    *,
    as_json: bool,
) -> None:
    """Prints the scores, and tells a bank's trackers."""
    from ..scores import summarize
    from ..training.tracking.runs import track_scores

    summary = summarize(results)
    emit(dataclasses.asdict(summary), as_json=as_json, table=_score_table(summary))
    if not isinstance(policy, str):
        track_scores(following, policy, summary, dataclasses.asdict(config))


def _require_bank_options(
    policy: ExpertBank | str, who: str, track: str | None, prompt_from: Path | None, cluster: RayCluster | None
) -> None:
    """Refuses options that `who` cannot have, before anything is played.

    Raises:
        ConfigError: --track or --prompt-from, which go with some banks only.
    """
    if track is not None and (isinstance(policy, str) or who.startswith("builtin:")):
        raise ConfigError(f"--track goes with a bank in a folder, whose logs/ it writes to; got {who}")
    if prompt_from is not None and (isinstance(policy, str) or cluster is not None):
        raise ConfigError("--prompt-from goes with a bank and without --ray; `ExpertBank.with_tasks` keeps the tasks in a bank")


def _evaluate(
    policy: ExpertBank | str,
    tasks: Sequence[TaskSpec],
    config: EvalConfig,
    acting: Acting,
    cluster: RayCluster | None,
    rows: Path | None,
    video: Path | None,
) -> Sequence[EpisodeResult]:
    """The episodes, run here or on the cluster.

    The video is made before, because it is the part that may not work here, and the file of rows is checked before that.
    """
    from ..evaluation import check_rows, evaluate, evaluate_in_jobs
    from ..evaluation.videos import record

    if cluster is None or video is not None:
        here: M3DTAgent | str = policy if isinstance(policy, str) else acting.load(policy, tasks)
    if video is not None:
        if rows is not None:
            check_rows(rows, here, config)
        record(here, tasks, video, config, progress=shows_progress(None))
    if cluster is None:
        return evaluate(here, tasks, config, rows=rows)
    return evaluate_in_jobs(
        policy, tasks, config, cluster, experts=acting.experts, precision=acting.precision, device=acting.device, rows=rows
    )


def _unwritten_aside(
    play: Callable[[], Sequence[EpisodeResult]],
) -> tuple[Sequence[EpisodeResult], UnwrittenRowsError | None]:
    """What `play` returns, and the error if it could not be written, which is to be told after the table."""
    try:
        return play(), None
    except UnwrittenRowsError as error:
        return error.rows, error


@contextlib.contextmanager
def _telling_what_is_kept() -> Iterator[None]:
    """Prints the notes of an error or interrupt: how many episodes are in the file of rows."""
    try:
        yield
    except (M3DTError, KeyboardInterrupt) as error:
        for note in getattr(error, "__notes__", ()):
            say(note)
        raise


def _score_table(summary: Summary) -> TextTable:
    columns = ("task", "episodes", "return", "score", "95% interval", "success %")
    table = make_table(f"{summary.policy}: normalized scores", columns, [])
    for task in summary.tasks.values():
        success = "-" if task.success_rate is None else f"{100 * task.success_rate:.0f}"
        table.add_row(
            task.task,
            str(task.episodes),
            f"{task.mean_return:.1f}",
            f"{task.mean_score:.1f}" if task.on_scale else "= return",
            _interval(task.score_interval),
            success,
        )
    success = "-" if summary.success_rate is None else f"{100 * summary.success_rate:.0f}"
    table.add_section()
    table.add_row("mean", str(summary.episodes), "", _score(summary.mean_score), _interval(summary.mean_interval), success)
    table.add_row("IQM", "", "", _score(summary.iqm_score), _interval(summary.iqm_interval), "")
    return table


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _interval(interval: tuple[float, float]) -> str:
    return "-" if math.isnan(interval[0]) else f"{interval[0]:.1f} … {interval[1]:.1f}"
