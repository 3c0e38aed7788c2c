"""Runs cells: data, training, episodes; killable at any moment, and nothing is done twice.

for each cell of this shard that nobody has finished and nobody holds:
    data       collected once per (tasks, condition, number), shared by all cells
    training   as far as 75%, rows-0.75; to the end, rows-1.00                 (methods of three stages: only the end)
    episodes   in parts of a few tasks, each kept as soon as it is there
    facts      parameters, windows, FLOP, learning curve                       → cell.json
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.disk import write_file
from m3dt_agent.errors import ConfigError
from m3dt_agent.evaluation import AgentPolicy, EpisodeResult, evaluate, installed_versions, read_rows, router_usage, write_rows
from m3dt_agent.jobs import Engine, LocalProcesses, run_jobs, runs_here, shard_of
from m3dt_agent.training.cost import duration
from m3dt_agent.training.logs import announce

from ..methods import Method, Outcome, Work, method
from ..records import FINAL, Cell, Facts, read_cell, write_cell, write_cell_rows
from .conflict import module_conflict
from .data import describe_data, prepare, require_disjoint

TASKS_PER_PART = 4
"""Tasks whose episodes a kill can cost."""
COLLECTION_SEED = 0
Say = Callable[[str], None]


def run_cells(
    cells: Sequence[Cell],
    run: Path,
    datasets: Path,
    *,
    shard: tuple[int, int] = (1, 1),
    device: str = "cpu",
    workers: int | None = None,
    engine: Engine = LocalProcesses(0),
    progress: bool | None = None,
    keep_weights: bool = False,
    say: Say = print,
) -> int:
    """Brings every cell of a shard to its end; returns how many had something left to do.

    shard: (I, N), every N-th cell from the I-th on. workers: simulator processes of a cell. engine: where cells run; elsewhere,
    `run` and `datasets` must be folders that all see. keep_weights: keep `work/` of finished cells.

    Raises:
        ConfigError: a shard that does not exist. Whatever collection, training and evaluation raise.
    """
    mine = shard_of(list({cell.id: cell for cell in cells}.values()), shard)
    jobs: list[CellJob] = []
    for number, cell in enumerate(mine, 1):
        job = CellJob(
            f"[{number}/{len(mine)}] {cell.experiment}: {cell.method}, {cell.task_set}, seed {cell.training_seed} ({cell.id})",
            cell,
            run.absolute(),
            datasets.absolute(),
            device,
            workers,
            progress if runs_here(engine) else False,
            keep_weights,
        )
        if is_finished(run, cell):
            say(f"{job.name}: done before")
        else:
            jobs.append(job)
    done = 0
    for number, seconds in run_jobs(jobs, engine):
        say(f"{jobs[number].name}: {'another process has it' if seconds is None else f'{seconds:.0f} s'}")
        done += seconds is not None
    return done


@dataclass(frozen=True, slots=True)
class CellJob:
    """One cell, from wherever it is to its end."""

    name: str
    cell: Cell
    run: Path
    datasets: Path
    device: str
    workers: int | None
    progress: bool | None
    keep_weights: bool

    def __call__(self) -> float | None:
        """The seconds it took, or None if another process has it."""
        if not self.run.parent.exists():
            raise ConfigError(f"{self.run.parent} is not to be seen from {platform.node()}; cells need a folder that all share")
        with held(self.run / self.cell.id) as free:
            if not free:
                return None
            began = time.monotonic()
            _run_cell(self.cell, self.run, self.datasets, self.device, self.workers, self.progress, self.keep_weights)
            return time.monotonic() - began


def is_finished(run: Path, cell: Cell) -> bool:
    """Whether a run has a cell's final episodes and facts."""
    if not (run / cell.id / "cell.json").exists():
        return False
    result = read_cell(run / cell.id)
    return result.facts is not None and bool(result.final)


def _run_cell(
    cell: Cell, run: Path, datasets: Path, device: str, workers: int | None, progress: bool | None, keep_weights: bool
) -> None:
    folder = write_cell(run, cell, None)
    settings = cell.settings
    episodes, stop = settings["demonstrations"], settings.get("stop_after_success")
    require_disjoint(cell.tasks, episodes, COLLECTION_SEED, settings["eval_seed"], settings["episodes"])
    data = prepare(datasets, cell.tasks, cell.condition, episodes, COLLECTION_SEED, workers, stop_after_success=stop)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    work = Work(cell, data, folder / "work", device, progress, shared=run / "shared", workers=workers)
    work.folder.mkdir(exist_ok=True)
    chosen = method(cell.method)
    began = time.monotonic()
    outcome = _train_and_evaluate(chosen, work, run, workers)
    agent = outcome.policy
    conflict = module_conflict(agent, data, work.train_config("backbone")) if isinstance(agent, M3DTAgent) else {}
    seconds = _seconds(work.folder, time.monotonic() - began)
    write_cell(run, cell, _facts(cell, chosen, outcome, data, seconds, conflict))
    if not keep_weights:
        shutil.rmtree(work.folder)


def _train_and_evaluate(chosen: Method, work: Work, run: Path, workers: int | None) -> Outcome:
    outcome = Outcome("")
    for fraction in chosen.fractions:
        evaluated = (run / work.cell.id / f"rows-{fraction}.jsonl").exists()
        if evaluated and fraction != FINAL:
            continue  # training has gone on from there, and cannot go back
        outcome = chosen.train(work, fraction)
        if not evaluated:
            write_cell_rows(run, work.cell, fraction, _episodes(outcome, work, fraction, workers))
    if isinstance(outcome.policy, M3DTAgent) and outcome.policy.experts == "mixture" and outcome.policy.config.n_experts:
        usage = router_usage(outcome.policy, work.data)
        write_file(run / work.cell.id / "expert_weights.json", json.dumps(usage).encode())
    return outcome


def _episodes(outcome: Outcome, work: Work, fraction: str, workers: int | None) -> list[EpisodeResult]:
    """All episodes of a cell, in parts that are kept one by one."""
    settings, names = work.cell.settings, work.cell.tasks
    config = EvalConfig(
        settings["episodes"],
        settings["eval_seed"],
        slots=settings.get("slots", 32),
        workers=workers,
        stop_on_success=settings.get("stop_on_success", False),
    )
    policy = AgentPolicy(outcome.policy, name=work.cell.method) if isinstance(outcome.policy, M3DTAgent) else outcome.policy
    parts = {
        work.folder / f"rows-{fraction}-{first:03d}.jsonl": names[first : first + TASKS_PER_PART]
        for first in range(0, len(names), TASKS_PER_PART)
    }
    missing = [part for part in parts if not part.exists()]
    began = time.monotonic()
    for number, part in enumerate(missing):
        if number:
            left = duration((time.monotonic() - began) / number * (len(missing) - number))
            announce(f"{work.cell.method}: {number} of {len(missing)} parts evaluated, about {left} left", work.progress)
        write_rows(part, evaluate(policy, parts[part], config, progress=work.progress))
    return [row for part in parts for row in read_rows(part)]


def _seconds(folder: Path, seconds: float) -> float:
    """The seconds of this and of earlier, interrupted attempts that came this far."""
    file = folder / "seconds.json"
    total = seconds + (json.loads(file.read_text()) if file.exists() else 0.0)
    write_file(file, json.dumps(total).encode())
    return float(total)


def _facts(
    cell: Cell, chosen: Method, outcome: Outcome, data: TaskDatasets, seconds: float, conflict: Mapping[str, float]
) -> Facts:
    names = ("parameters", "active_parameters", "windows", "training_flop", "action_flop", "curve")
    return Facts(
        **{name: getattr(outcome, name) for name in names},
        task_id=chosen.task_id,
        data=describe_data(data),
        seconds=seconds,
        threads=cell.settings["threads"],
        precision=cell.settings["precision"],
        machine=f"{platform.machine()}, {platform.processor() or 'unknown processor'}",
        versions=dict(installed_versions()) | {"python": platform.python_version()},
        conflict=conflict,
    )


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Whether this process now has the cell to itself; a kill gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def status(cells: Sequence[Cell], run: Path) -> list[dict[str, Any]]:
    """Per cell, what there is of it: rows of which fractions, and whether it is finished."""
    rows = []
    for cell in cells:
        folder = run / cell.id
        fractions = sorted(path.stem.removeprefix("rows-") for path in folder.glob("rows-*.jsonl"))
        summary = {name: getattr(cell, name) for name in ("id", "experiment", "method", "task_set", "training_seed", "scale")}
        rows.append({**summary, "rows": fractions, "finished": is_finished(run, cell)})
    return rows
