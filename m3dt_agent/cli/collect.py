"""`m3dt collect`: makes datasets of demonstrations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..jobs import RETRIES, LocalProcesses, shard_of
from ..system.machine import duration, usable_cores
from ..tasks import TaskSpec, lookup
from .shared.options import (
    DEFAULT_ROOT,
    AllTasks,
    AsJson,
    CpusPerJob,
    RayAddress,
    Retries,
    Root,
    Seed,
    SetSeed,
    Shard,
    Source,
    TaskNames,
    TaskSet,
    Workers,
    choose_tasks,
    parse_pairs,
    parse_shard,
    path_option,
    ray_cluster,
)
from .shared.output import emit, make_table, quiet_stdout, say, size
from .shared.own_code import own_function

if TYPE_CHECKING:
    from ..agent.collecting import BankActor
    from ..data.collect import CollectSummary
    from ..data.shards import PolicyFactory

STEP_SECONDS = {"metaworld": 1.0e-3, "dmcontrol": 0.6e-3, "ant-dir": 0.5e-3, "cheetah-vel": 0.2e-3}
"""Seconds per step of simulator and behavior policy on one core. Measured: 0.5, 0.2-0.5, 0.3 and 0.1 ms on an AMD EPYC of 2024.
These figures are doubled, to include resets and writing and because most machines are slower."""
OWN_STEP_SECONDS = 1.0e-3
"""The same for tasks of one's own, which nobody has measured."""


Level = Annotated[
    str, typer.Option(help="random, zero, novice, medium, expert or planner; expert+0.3 adds noise to the expert.")
]
Mixture = Annotated[str | None, typer.Option(help="Several levels and their shares, like random:0.2,expert:0.8.")]
Weights = Annotated[Path | None, path_option(help="File of policies trained with `m3dt behavior train` to use.")]
OwnPolicy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="MODULE:FUNCTION",
        help="A policy of yours: called with a task, it returns a function observation → action in [-1, 1].",
    ),
]
Actor = Annotated[str | None, typer.Option(metavar="BANK", help="A bank (a folder, or builtin:NAME) whose agent acts.")]
LabelWith = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Keep beside every action what this level would have done; training learns that."),
]
StopAfterSuccess = Annotated[
    int | None, typer.Option(min=1, help="End Meta-World episodes on their N-th successful step; default: full length.")
]


def collect_command(
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    root: Root = DEFAULT_ROOT,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 100,
    level: Level = "expert",
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise added to actions.")] = 0.0,
    mixture: Mixture = None,
    weights: Weights = None,
    own: OwnPolicy = None,
    actor: Actor = None,
    label_with: LabelWith = None,
    source: Source = None,
    stop_after_success: StopAfterSuccess = None,
    seed: Seed = 0,
    workers: Workers = None,
    shard: Shard = "1/1",
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    retries: Retries = RETRIES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace datasets made with other options.")] = False,
    as_json: AsJson = False,
) -> None:
    """Collect demonstrations, one Minari dataset per task.

    If it is interrupted, run the same command again to continue.
    """
    from ..data.collect import CollectConfig, collect

    tasks = shard_of(choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=set_seed), parse_shard(shard))
    engine = ray_cluster(ray, cpus_per_job, 0.0, retries) or LocalProcesses(workers, retries)
    policy = who_acts(own, actor, weights, level, tasks)
    config = CollectConfig(
        levels={"custom" if policy else level: 1.0} if mixture is None else parse_mixture(mixture),
        noise=noise,
        episodes=episodes,
        seed=seed,
        source=source,
        stop_after_success=stop_after_success,
        label_with=label_with,
    )
    if ray is None:
        say(collection_estimate(tasks, episodes, workers))
    with quiet_stdout():
        summaries = collect(tasks, root, config, policy=policy, engine=engine, overwrite=overwrite)
    emit_summaries(summaries, f"m3dt/<task>/{config.source_name}-v0 under {root}", as_json=as_json)


def who_acts(
    own: str | None, actor: str | None, weights: Path | None, level: str, tasks: Sequence[TaskSpec]
) -> PolicyFactory | None:
    """The policy of `--policy`, `--actor` or `--weights`; None: the behavior policies that come with the package.

    Raises:
        ConfigError: more than one is given.
        M3DTError: as `own_function` and `bank_actor`.
    """
    from ..data.behavior import behavior_policy

    if len(given := [name for name, value in (("--policy", own), ("--weights", weights), ("--actor", actor)) if value]) > 1:
        raise ConfigError(f"{' and '.join(given)} each say who acts; give one of them")
    if own is not None:
        policy: PolicyFactory = own_function(own, "--policy")
        return policy
    if actor is not None:
        return bank_actor(actor, tasks)
    return None if weights is None else functools.partial(behavior_policy, level=level, weights=weights)


def bank_actor(path: str, tasks: Sequence[TaskSpec]) -> BankActor:
    """Who acts for `--actor`.

    Raises:
        BankError: there is no bank at `path`, or it is damaged.
        UnknownTaskError: the bank does not have one of the tasks.
    """
    from ..agent.collecting import BankActor
    from ..bank.builtin import open_bank

    known = {task.name: task for task in open_bank(path, check="sizes").tasks}
    for task in tasks:
        lookup(known, task.name, "task of this bank")
    return BankActor.of(path)


def parse_mixture(text: str) -> dict[str, float]:
    """Level → share, from a text like "random:0.2,expert:0.8".

    Raises:
        ConfigError: as in `parse_pairs`.
    """
    return parse_pairs(text, float, "a mixture", "random:0.2,expert:0.8")


def collection_estimate(tasks: Sequence[TaskSpec], episodes: int, workers: int | None) -> str:
    """One line that says how much time and disk the collection takes at most, that is, if all episodes have full length."""
    processes = max(1, usable_cores() if workers is None else workers)
    seconds = (
        sum(STEP_SECONDS.get(task.domain, OWN_STEP_SECONDS) * task.max_episode_steps for task in tasks) * episodes / processes
    )
    # Steps of float32 with reward and flags, once as shards and once as HDF5.
    n_bytes = sum((task.obs_dim + task.act_dim + 2) * 4 * 2 * task.max_episode_steps for task in tasks) * episodes
    return f"{len(tasks)} task(s), {episodes} episode(s) each: about {duration(seconds)} and up to {size(n_bytes)} of disk"


def emit_summaries(summaries: Sequence[CollectSummary], title: str, *, as_json: bool) -> None:
    """Prints the summaries of collected datasets."""
    rows = [_summary_row(summary) for summary in summaries]
    columns = ("task", "episodes", "steps", "return", "score", "success %", "seconds")
    cells = ([value for key, value in row.items() if key not in ("path", "kept")] for row in rows)
    emit(rows, as_json=as_json, table=make_table(title, columns, cells))


def _summary_row(summary: CollectSummary) -> dict[str, Any]:
    return {
        "task": summary.task.name,
        "path": str(summary.path),
        "episodes": summary.episodes,
        "steps": summary.steps,
        "mean_return": summary.mean_return,
        "mean_normalized_score": summary.mean_normalized_score,
        "success_percent": None if summary.success_rate is None else 100.0 * summary.success_rate,
        "seconds": summary.seconds,
        "kept": summary.kept,
    }
