"""Runs the cells of experiments: data, training, evaluation. A run may be killed at any moment, and nothing is done twice.

for each cell of this shard that is not finished and that no other process is working on:
    data        collected once per (tasks, condition, number) and shared by all cells
    training    to 75% and then to the end; methods with three stages go straight to the end
    episodes    rows-0.75.jsonl and rows-1.00.jsonl, evaluated in parts of a few tasks; every finished part is kept
    facts       parameters, windows, FLOP and the learning curve, in cell.json
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig
from m3dt_agent.errors import ConfigError
from m3dt_agent.evaluation import AgentPolicy, EpisodeResult, evaluate, installed_versions, read_rows, router_usage, write_rows
from m3dt_agent.evaluation.rollout import TASKS_PER_PART
from m3dt_agent.jobs import Engine, LocalProcesses, run_jobs, runs_here, shard_of
from m3dt_agent.system.disk import file_lock, write_file
from m3dt_agent.system.machine import duration
from m3dt_agent.training.logs import announce

from ..methods import Method, Outcome, Work, method
from ..records import FINAL, Cell, Facts, read_cell, write_cell, write_cell_episodes
from .data import describe_data, prepare, require_disjoint
from .gradient_conflict import conflict_by_module

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
    """Finishes every cell of a shard that is not finished yet, and returns how many of them this call worked on.

    Args:
        run: folder of the run. If `engine` runs jobs on other machines, all of them must see it and `datasets`.
        datasets: Minari root of the demonstrations.
        shard: (I, N) takes every N-th cell, starting with the I-th.
        device: where models run: "cpu", "cuda", or "auto" (a GPU if there is one).
        workers: simulator processes of one cell (None: one per core; 0: none).
        engine: where cells run.
        keep_weights: keep the folder `work/` of finished cells.

    Raises:
        ConfigError: the shard does not exist.
        M3DTError: as collection, training and evaluation raise.
    """
    mine = shard_of(list({cell.id: cell for cell in cells}.values()), shard)
    jobs: list[CellJob] = []
    for number, cell in enumerate(mine, 1):
        shown = f"{cell.experiment}: {cell.method}, {cell.task_set}, seed {cell.training_seed} ({cell.id})"
        job = CellJob(
            name=f"[{number}/{len(mine)}] {shown}",
            cell=cell,
            run=run.absolute(),
            datasets=datasets.absolute(),
            device=device,
            workers=workers,
            progress=progress if runs_here(engine) else False,
            keep_weights=keep_weights,
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
    """The job of finishing one cell, from whatever is there already. Fields as the arguments of `run_cells`."""

    name: str
    cell: Cell
    run: Path
    datasets: Path
    device: str
    workers: int | None
    progress: bool | None
    keep_weights: bool

    def __call__(self) -> float | None:
        """Finishes the cell and returns the seconds it took, or None if another process is working on it."""
        if not self.run.parent.exists():
            raise ConfigError(
                f"{platform.node()} does not see {self.run.parent}; cells need a run folder that all machines share"
            )
        with held(self.run / self.cell.id) as free:
            if not free:
                return None
            began = time.monotonic()
            self._finish()
            return time.monotonic() - began

    def _finish(self) -> None:
        write_cell(self.run, self.cell, None)
        chosen = method(self.cell.method, self.cell.settings.get("package"))
        work = self._prepare_work()
        began = time.monotonic()
        outcome = self._train_and_evaluate(chosen, work)
        facts = _facts(chosen, outcome, work, began)
        write_cell(self.run, self.cell, facts)
        if not self.keep_weights:
            shutil.rmtree(work.folder)

    def _prepare_work(self) -> Work:
        """The cell's data and its folder for everything that must survive a kill."""
        cell, settings = self.cell, self.cell.settings
        episodes = settings["demonstrations"]
        require_disjoint(cell.tasks, episodes, COLLECTION_SEED, settings["eval_seed"], settings["episodes"])
        data = prepare(
            self.datasets,
            cell.tasks,
            cell.condition,
            episodes,
            COLLECTION_SEED,
            self.workers,
            stop_after_success=settings.get("stop_after_success"),
        )
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        work = Work(
            cell=cell,
            data=data,
            folder=self.run / cell.id / "work",
            device=device,
            progress=self.progress,
            shared=self.run / "shared",
            workers=self.workers,
        )
        work.folder.mkdir(exist_ok=True)
        return work

    def _train_and_evaluate(self, chosen: Method, work: Work) -> Outcome:
        outcome = Outcome("")
        for fraction in chosen.fractions:
            evaluated = (self.run / self.cell.id / f"rows-{fraction}.jsonl").exists()
            if evaluated and fraction != FINAL:
                continue  # the model has been trained further and cannot go back
            outcome = chosen.train(work, fraction)
            if not isinstance(outcome, Outcome):
                raise ConfigError(f"method {self.cell.method!r} must return an Outcome from train; got {outcome!r:.100}")
            if not evaluated:
                write_cell_episodes(self.run, self.cell, fraction, _evaluate_in_parts(outcome, work, fraction))
        agent = outcome.policy
        if isinstance(agent, M3DTAgent) and agent.experts == "mixture" and agent.config.n_experts:
            usage = router_usage(agent, work.data)
            write_file(self.run / self.cell.id / "expert_weights.json", json.dumps(usage).encode())
        return outcome


def is_finished(run: Path, cell: Cell) -> bool:
    """Whether the run has the cell's facts and the episodes of its final model."""
    return (run / cell.id / "cell.json").exists() and read_cell(run / cell.id).finished


def status(cells: Sequence[Cell], run: Path) -> list[dict[str, Any]]:
    """What the run has of each cell: `rows`, the fractions of the training whose episodes are there, and `finished`."""
    found = []
    for cell in cells:
        fractions = sorted(path.stem.removeprefix("rows-") for path in (run / cell.id).glob("rows-*.jsonl"))
        summary = {name: getattr(cell, name) for name in ("id", "experiment", "method", "task_set", "training_seed", "scale")}
        found.append({**summary, "rows": fractions, "finished": is_finished(run, cell)})
    return found


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Locks a cell's folder; gives whether this process now has it to itself. A kill releases the lock."""
    with file_lock(folder / ".lock", wait=False) as had:
        yield had


def _evaluate_in_parts(outcome: Outcome, work: Work, fraction: str) -> list[EpisodeResult]:
    """All episodes of a cell. They are evaluated in parts of a few tasks, and each part is written as soon as it is
    finished."""
    settings, names = work.cell.settings, work.cell.tasks
    config = EvalConfig(
        settings["episodes"],
        settings["eval_seed"],
        slots=settings.get("slots", 32),
        workers=work.workers,
        stop_on_success=settings.get("stop_on_success", False),
    )
    policy = AgentPolicy(outcome.policy, name=work.cell.method) if isinstance(outcome.policy, M3DTAgent) else outcome.policy
    parts = {  # a kill loses at most the episodes of one part
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


def _facts(chosen: Method, outcome: Outcome, work: Work, began: float) -> Facts:
    """What the cell took. began: when this attempt did, by `time.monotonic`."""
    agent, settings = outcome.policy, work.cell.settings
    conflict = conflict_by_module(agent, work.data, work.train_config("backbone")) if isinstance(agent, M3DTAgent) else {}
    counted = ("parameters", "active_parameters", "windows", "training_flop", "action_flop", "curve")
    return Facts(
        **{name: getattr(outcome, name) for name in counted},
        task_id=chosen.task_id,
        data=describe_data(work.data),
        seconds=_add_seconds(work.folder, time.monotonic() - began),
        threads=settings["threads"],
        precision=settings["precision"],
        machine=f"{platform.machine()}, {platform.processor() or 'unknown processor'}",
        versions=dict(installed_versions()) | {"python": platform.python_version()},
        conflict=conflict,
    )


def _add_seconds(folder: Path, seconds: float) -> float:
    """The seconds of this attempt and of earlier ones that came this far; they are kept in `folder`."""
    file = folder / "seconds.json"
    total = seconds + (json.loads(file.read_text()) if file.exists() else 0.0)
    write_file(file, json.dumps(total).encode())
    return float(total)
