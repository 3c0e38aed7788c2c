"""`m3dt collect`, `m3dt behavior …`, `m3dt data …`: everything before training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DatasetError
from ..jobs import RETRIES, LocalProcesses, shard_of
from ..machine import usable_cores
from ..tasks import TASKS, TaskSpec, get, resolve
from .options import (
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
    ray_cluster,
)
from .output import duration, emit, make_table, quiet_stdout, say, size

if TYPE_CHECKING:
    from ..data.behavior import BehaviorInfo
    from ..data.collect import CollectSummary

DEFAULT_ROOT = Path("datasets")

STEP_SECONDS = {"metaworld": 1.0e-3, "dmcontrol": 0.6e-3, "ant-dir": 0.5e-3, "cheetah-vel": 0.2e-3}
"""Seconds per step of simulator and behavior policy on one core. Measured 0.5, 0.2-0.5, 0.3 and 0.1 ms on an AMD EPYC of 2024;
doubled, because resets and writing come on top and most machines are slower."""

SAC_STEPS_PER_SECOND = 280
"""Soft actor-critic's speed on cartpole-balance on one core, as measured for the policies that ship with the package."""

behavior_app = typer.Typer(help="Behavior policies: who acts while demonstrations are collected.", no_args_is_help=True)
data_app = typer.Typer(help="Look at datasets, check them, pack them for training.", no_args_is_help=True)


def collect_command(
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    root: Root = DEFAULT_ROOT,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 100,
    level: Annotated[str, typer.Option(help="random, zero, novice, medium, expert, planner; expert+0.3: noise.")] = "expert",
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise added to actions.")] = 0.0,
    mixture: Annotated[str | None, typer.Option(help="Shares of levels instead: random:0.2,expert:0.8.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained policies of `m3dt behavior train` to use instead.")] = None,
    source: Source = None,
    stop_after_success: Annotated[
        int | None, typer.Option(min=1, help="End Meta-World episodes on their N-th successful step; default: full length.")
    ] = None,
    seed: Seed = 0,
    workers: Workers = None,
    shard: Shard = "1/1",
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    retries: Retries = RETRIES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace datasets that were collected otherwise.")] = False,
    as_json: AsJson = False,
) -> None:
    """Collect demonstrations, one Minari dataset per task. Interrupted, it continues when run again."""
    from ..data.behavior import behavior_policy
    from ..data.collect import CollectConfig, collect

    tasks = shard_of(choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=set_seed), parse_shard(shard))
    engine = ray_cluster(ray, cpus_per_job, 0.0, retries) or LocalProcesses(workers, retries)
    policy = None if weights is None else functools.partial(behavior_policy, level=level, weights=weights)
    config = CollectConfig(
        levels={"custom" if policy else level: 1.0} if mixture is None else parse_mixture(mixture),
        noise=noise,
        episodes=episodes,
        seed=seed,
        source=source,
        stop_after_success=stop_after_success,
    )
    if ray is None:
        say(collection_estimate(tasks, episodes, workers))
    with quiet_stdout():
        summaries = collect(tasks, root, config, policy=policy, engine=engine, overwrite=overwrite)
    rows = [collect_row(summary) for summary in summaries]
    columns = ("task", "episodes", "steps", "return", "score", "success %", "seconds")
    cells = ([value for key, value in row.items() if key not in ("path", "kept")] for row in rows)
    title = f"m3dt/<task>/{config.source_name}-v0 under {root}"
    emit(rows, as_json=as_json, table=make_table(title, columns, cells))


def parse_mixture(text: str) -> dict[str, float]:
    """Levels of behavior policies and their shares.

    Raises:
        ConfigError: as `parse_pairs`.
    """
    return parse_pairs(text, float, "a mixture", "random:0.2,expert:0.8")


def collection_estimate(tasks: Sequence[TaskSpec], episodes: int, workers: int | None) -> str:
    """One line: at most how long, and how much disk, collecting full-length episodes takes."""
    processes = max(1, usable_cores() if workers is None else workers)
    seconds = sum(STEP_SECONDS[task.domain] * task.max_episode_steps for task in tasks) * episodes / processes
    # Float32 rows with reward and flags, once as shards and once as HDF5.
    n_bytes = sum((task.obs_dim + task.act_dim + 2) * 4 * 2 * task.max_episode_steps for task in tasks) * episodes
    return f"{len(tasks)} task(s), {episodes} episode(s) each: about {duration(seconds)} and up to {size(n_bytes)} of disk"


def collect_row(summary: CollectSummary) -> dict[str, Any]:
    """One dataset's summary as plain values."""
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


@behavior_app.command("list")
def behavior_list(names: TaskNames = None, as_json: AsJson = False) -> None:
    """Every task's behavior policy, its levels and what they were measured to return."""
    from ..data.behavior import behavior_table

    infos = behavior_table(resolve(names) if names else TASKS)
    emit(
        [{**dataclasses.asdict(info), "task": info.task.name} for info in infos],
        as_json=as_json,
        table=make_table(
            "Behavior policies (levels with their normalized scores)",
            ("task", "policy", "levels", "expert's return"),
            ([info.task.name, info.kind, *_level_cells(info)] for info in infos),
            left=3,
        ),
    )


def _level_cells(info: BehaviorInfo) -> tuple[str, str]:
    """Levels with their normalized scores, and the expert's return, each where measured."""
    levels = (f"{level} {info.returns[level].normalized:.1f}" if level in info.returns else level for level in info.levels)
    expert = info.returns.get("expert")
    return ", ".join(levels), f"{expert.mean:.1f} ± {expert.std:.1f}" if expert else "-"


@behavior_app.command("train")
def behavior_train(
    name: Annotated[str, typer.Argument(metavar="TASK", help="The task to learn.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/behavior/TASK.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Environment steps in all; more than before continues.")] = 100_000,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints, each measured.")] = 10_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a behavior policy with soft actor-critic and export it. Interrupted, it continues when run again."""
    from ..data.train_behavior import BehaviorTrainingConfig, train_behavior

    task, folder = get(name), out or Path("runs", "behavior", name)
    config = BehaviorTrainingConfig(steps=steps, seed=seed, checkpoint_every=checkpoint_every)
    say(f"{steps:,} steps at about 280 a second: {duration(steps / SAC_STEPS_PER_SECOND)}; checkpoints in {folder}")
    with quiet_stdout():
        returns = train_behavior(
            task, folder, config, on_snapshot=lambda s: say(f"{s.steps:,} steps: return {s.measured.mean:.1f}")
        )
    rows = ([level, r.mean, r.std, r.normalized] for level, r in returns.items())
    emit(
        {"task": name, "path": str(folder), "returns": {level: dataclasses.asdict(r) for level, r in returns.items()}},
        as_json=as_json,
        table=make_table(f"{name}, exported to {folder}", ("level", "return", "deviation", "score"), rows),
    )


@data_app.command("info")
def data_info(names: TaskNames = None, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """What datasets there are under a root: episodes, steps, returns, who acted."""
    from ..data.episodes import read_metadata

    rows: list[dict[str, Any]] = []
    for task, source, path in _datasets(root, names, None):
        metadata = read_metadata(path)
        rows.append(
            {
                "task": task.name,
                "source": source,
                "path": str(path),
                "episodes": metadata.get("total_episodes"),
                "steps": metadata.get("total_steps"),
                "stop_after_success": metadata.get("stop_after_success", 0),
                "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            }
        )
    columns = ("task", "source", "episodes", "steps", "stops after success", "size")
    cells = (
        [r["task"], r["source"], r["episodes"], r["steps"], r["stop_after_success"] or "no", size(r["bytes"])] for r in rows
    )
    emit(rows, as_json=as_json, table=make_table(f"Datasets under {root}", columns, cells, left=2))


@data_app.command("validate")
def data_validate(names: TaskNames = None, root: Root = DEFAULT_ROOT, source: Source = None, as_json: AsJson = False) -> None:
    """Check datasets; every problem with its episode and step. Exit code 1 if there is any."""
    from ..data.episodes import validate_dataset

    rows = [
        {"task": task.name, "path": str(path), "problems": validate_dataset(path, task)}
        for task, _, path in _datasets(root, names, source)
    ]
    cells = ([row["task"], row["path"], "\n".join(row["problems"]) or "ok"] for row in rows)
    emit(rows, as_json=as_json, table=make_table("Validation", ("task", "dataset", "problems"), cells, left=3))
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@data_app.command("pack")
def data_pack(names: TaskNames = None, root: Root = DEFAULT_ROOT, source: Source = None, as_json: AsJson = False) -> None:
    """Build the memory-mapped copies that training reads; training does it by itself where they are missing."""
    from ..data.pack import pack_dataset

    rows: list[dict[str, Any]] = []
    for task, name, path in _datasets(root, names, source):
        packed = pack_dataset(path, task)
        rows.append(
            {
                "task": task.name,
                "source": name,
                "episodes": len(packed.returns),
                "steps": len(packed.steps),
                "bytes": packed.steps.nbytes,
                "mean_return": float(packed.returns.mean()),
                "best_return": float(packed.returns.max()),
            }
        )
    columns = ("task", "source", "episodes", "steps", "size", "mean return", "best return")
    cells = ([*list(r.values())[:4], size(r["bytes"]), r["mean_return"], r["best_return"]] for r in rows)
    emit(rows, as_json=as_json, table=make_table(f"Packed under {root}", columns, cells, left=2))


@data_app.command("import")
def data_import(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="mt160, tdmpc2, prompt-dt or minari.")],
    path: Annotated[Path, typer.Argument(help="Folder (or one file of tdmpc2's) of the published data.")],
    names: TaskNames = None,
    root: Root = DEFAULT_ROOT,
    source: Annotated[str, typer.Option(help="Name of the datasets' source, m3dt/<task>/<source>-v0.")] = "published",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace datasets that were made from other files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import published data, one Minari dataset per task; without TASKS, all that is there. Interrupted, it continues."""
    from ..hub.convert_data import import_datasets

    with quiet_stdout():
        summaries = import_datasets(format_name, path, root, names or None, source=source, overwrite=overwrite)
    rows = [{**dataclasses.asdict(s), "task": s.task.name, "path": str(s.path)} for s in summaries]
    columns = ("task", "episodes", "steps", "mean return", "clipped actions", "kept")
    cells = ([s.task.name, s.episodes, s.steps, s.mean_return, s.clipped_actions, "yes" if s.kept else ""] for s in summaries)
    emit(rows, as_json=as_json, table=make_table(f"m3dt/<task>/{source}-v0 under {root}", columns, cells))


def _datasets(root: Path, names: Sequence[str] | None, source: str | None) -> list[tuple[TaskSpec, str, Path]]:
    """(task, source, path) of the datasets under `root`, of all tasks or of those named.

    Raises:
        DatasetError: there are none, or a named task has none.
    """
    from ..data.episodes import find_sources

    chosen = resolve(names) if names else TASKS
    found = [(task, name, path) for task in chosen for name, path in find_sources(root, task).items() if source in (None, name)]
    missing = {get(name).name for name in names or () if name in {t.name for t in TASKS}} - {task.name for task, _, _ in found}
    if missing or not found:
        what = f" of {', '.join(sorted(missing))}" if missing else ""
        raise DatasetError(f"no dataset{what}{f' from source {source!r}' if source else ''} under {root}")
    return found
