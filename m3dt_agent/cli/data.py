"""`m3dt behavior …` and `m3dt data …`: behavior policies and datasets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DatasetError
from ..system.machine import duration
from ..tasks import Linear, ScoreRule, TaskSpec, add_to_file, get, known, resolve, to_toml
from .shared.options import DEFAULT_ROOT, AsJson, Cache, Root, Seed, Source, TaskNames, path_argument, path_option
from .shared.output import emit, make_table, quiet_stdout, say, size

if TYPE_CHECKING:
    from ..data.behavior import BehaviorInfo

SAC_STEPS_PER_SECOND = 280
"""Speed of soft actor-critic on one core, measured on cartpole-balance when the shipped policies were trained."""

behavior_app = typer.Typer(help="Behavior policies, which act while demonstrations are collected.", no_args_is_help=True)
data_app = typer.Typer(help="List, check, pack and import datasets.", no_args_is_help=True)


@behavior_app.command("list")
def behavior_list(names: TaskNames = None, as_json: AsJson = False) -> None:
    """List every task's behavior policy with its levels and their measured scores."""
    from ..data.behavior import behavior_table

    infos = behavior_table(resolve(names) if names else known())
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
    """The levels with their normalized scores, and the expert's return; what was not measured is left out."""
    levels = (f"{level} {info.returns[level].normalized:.1f}" if level in info.returns else level for level in info.levels)
    expert = info.returns.get("expert")
    return ", ".join(levels), f"{expert.mean:.1f} ± {expert.std:.1f}" if expert else "-"


@behavior_app.command("train")
def behavior_train(
    name: Annotated[str, typer.Argument(metavar="TASK", help="The task to learn.")],
    out: Annotated[Path | None, path_option(help="Folder of the run; default: runs/behavior/TASK.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Environment steps in all; a larger number continues a run.")] = 100_000,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints; the policy is measured at each one.")
    ] = 10_000,
    algorithm: Annotated[str, typer.Option(help="sac, sac-ln (with layer norms), tqc or crossq.")] = "sac",
    start: Annotated[
        str | None,
        typer.Option(help="Level to begin with: its episodes and, if it is trained, its weights. expert+0.2, planner, …"),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a behavior policy and export it.

    If it is interrupted, run the same command again to continue.
    """
    from ..data.behavior.training import BehaviorTrainingConfig, train_behavior

    task, folder = get(name), out or Path("runs", "behavior", name)
    config = BehaviorTrainingConfig(steps=steps, seed=seed, checkpoint_every=checkpoint_every, algorithm=algorithm, start=start)
    seconds = steps / SAC_STEPS_PER_SECOND
    say(f"{steps:,} steps at about {SAC_STEPS_PER_SECOND} a second: {duration(seconds)}; checkpoints in {folder}")
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
    """List the datasets under a root with their episodes, steps and size."""
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
    """Check datasets and list every problem with its episode and step; the exit code is 1 if there are any."""
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
def data_pack(
    names: TaskNames = None, root: Root = DEFAULT_ROOT, source: Source = None, cache: Cache = None, as_json: AsJson = False
) -> None:
    """Build the copies of the datasets that training reads. Training builds missing ones by itself."""
    from ..data.pack import pack_dataset

    rows: list[dict[str, Any]] = []
    for task, name, path in _datasets(root, names, source):
        packed = pack_dataset(path, task, cache)
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
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="mt160, tdmpc2, prompt-dt, minari or lerobot.")],
    path: Annotated[Path, path_argument(help="Folder of the data, one file of tdmpc2's, or a Minari dataset's id.")],
    names: TaskNames = None,
    root: Root = DEFAULT_ROOT,
    source: Annotated[str, typer.Option(help="Name of the datasets' source, m3dt/<task>/<source>-v0.")] = "published",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace datasets made from other files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import published data, one Minari dataset per task; without TASKS, the data of all tasks that are found.

    If it is interrupted, run the same command again to continue.
    """
    from ..hub.convert_data import import_datasets

    with quiet_stdout():
        summaries = import_datasets(format_name, path, root, names or None, source=source, overwrite=overwrite)
    rows = [{**dataclasses.asdict(s), "task": s.task.name, "path": str(s.path)} for s in summaries]
    columns = ("task", "episodes", "steps", "mean return", "clipped actions", "kept")
    cells = ([s.task.name, s.episodes, s.steps, s.mean_return, s.clipped_actions, "yes" if s.kept else ""] for s in summaries)
    emit(rows, as_json=as_json, table=make_table(f"m3dt/<task>/{source}-v0 under {root}", columns, cells))


@data_app.command("task")
def data_task(
    path: Annotated[Path, path_argument(help="Folder of a Minari or LeRobot dataset, or the id of a Minari one.")],
    name: Annotated[str, typer.Argument(metavar="TASK", help="The name that your task gets.")],
    score: Annotated[
        str, typer.Option(help="How episodes are scored: success, return, or LOW:HIGH for 0 to 100 between these returns.")
    ],
    domain: Annotated[str, typer.Option(help="The group in which tables show the task.")] = "own",
    to: Annotated[Path | None, path_option(help="A file of tasks to which the table is added, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Describe the task of a Minari or LeRobot dataset as TOML: widths, bounds and length are read from it.

    Put what it prints into a file (--to), and name the file with `m3dt --tasks FILE …` or in M3DT_TASKS.
    """
    from ..hub.published.lerobot import is_lerobot, spec_of_lerobot
    from ..hub.published.minari import dataset_folder
    from ..hub.published.own_minari import spec_of_dataset

    folder = dataset_folder(path)
    read = spec_of_lerobot if is_lerobot(folder) else spec_of_dataset
    spec = read(folder, name=name, domain=domain, score=_score_rule(score))
    if to is not None:
        add_to_file(to, spec)
    print(json.dumps(spec.to_dict(), indent=2) if as_json else to_toml([spec]), end="\n" if as_json else "")


def _score_rule(text: str) -> ScoreRule:
    if text in ("success", "return"):
        return text  # type: ignore[return-value]
    low, _, high = text.partition(":")
    try:
        return Linear(float(low), float(high))
    except ValueError as error:  # a ConfigError is one too
        raise ConfigError(f"--score must be success, return or LOW:HIGH, such as -1500:0; got {text!r}") from error


def _datasets(root: Path, names: Sequence[str] | None, source: str | None) -> list[tuple[TaskSpec, str, Path]]:
    """(task, source, path) of the datasets under `root`: of all tasks or of those named, from all sources or from one.

    Raises:
        DatasetError: there are none, or a named task has none.
    """
    from ..data.episodes import find_sources, unknown_tasks

    unknown = "" if names else unknown_tasks(root)
    chosen = resolve(names) if names else known()
    found = [(task, name, path) for task in chosen for name, path in find_sources(root, task).items() if source in (None, name)]
    of_its_own = {task.name for task in known()}.intersection(names or ())  # of a set or domain, some may be missing
    missing = of_its_own - {task.name for task, _, _ in found}
    if missing or not found:
        what = f" of {', '.join(sorted(missing))}" if missing else ""
        where = f"{f' from source {source!r}' if source else ''} under {root}{unknown and '; '}{unknown}"
        raise DatasetError(f"no dataset{what}{where}")
    if unknown:
        say(f"note: {unknown}")
    return found
