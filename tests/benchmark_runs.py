"""Run folders of the benchmark, made by hand: scores are asked for, and episodes that have them written.

hand_made_run(folder)   the run whose report is a golden (tests/golden/benchmark_report); all its numbers are in this file
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Cell, Facts, write_cell, write_cell_episodes
from benchmarks.report.comparison import build_report
from benchmarks.report.records import Plan, Row, Table
from m3dt_agent import tasks
from m3dt_agent.scores import EpisodeResult

TASKS = ("drawer-open", "walker-run", "ant-dir-3", "cheetah-vel-22")
"""One of each domain."""
Scores = Mapping[str, Sequence[float]]
"""Task → normalized score of each episode; 100 or 0 for Meta-World."""

PLANS = {
    ("claim", "small"): Plan(contrast=("m3dt-gradient", "prompt-dt")),
    ("table-1", "smoke"): Plan(contrast=("m3dt-gradient", "prompt-dt")),
}


def episode(task: str, seed: int, score: float, **changes: Any) -> EpisodeResult:
    """An episode with this normalized score."""
    spec = tasks.get(task)
    returns = {"metaworld": 4_000.0, "dmcontrol": 10 * score, "ant-dir": 5 * score, "cheetah-vel": -100 + 0.7 * score}
    metaworld = spec.domain == "metaworld"
    assert not metaworld or score in (0, 100)
    row = EpisodeResult(
        task=task,
        seed=seed,
        episode_return=float(returns[spec.domain]),
        length=spec.max_episode_steps,
        success=score == 100 if metaworld else None,
        policy="benchmark",
        bank_hash="",
        reward_version="v2" if metaworld else None,
        stop_on_success=False,
        versions={"mujoco": "3.3.0"},
    )
    return dataclasses.replace(row, **changes)


def episodes(scores: Scores) -> list[EpisodeResult]:
    """Every task's episodes, with environment seeds 1,000, 1,001, …"""
    return [episode(task, 1_000 + i, score) for task, values in scores.items() for i, score in enumerate(values)]


def cell(method: str, seed: int = 0, **changes: Any) -> Cell:
    """A cell of the hand-made run's first experiment."""
    fields: dict[str, Any] = {"experiment": "claim", "task_set": "four", "task_set_seed": 0, "scale": "small"}
    fields |= {"condition": "mixture", "tasks": TASKS, "settings": {"embed_dim": 32, "backbone_steps": 1_000}}
    return Cell(method=method, training_seed=seed, **(fields | changes))


def facts(**changes: Any) -> Facts:
    """What a small model takes."""
    fields: dict[str, Any] = {"parameters": 123_456, "active_parameters": 123_456, "windows": 16_000, "task_id": "none"}
    fields |= {"training_flop": 2.5e12, "action_flop": 1.25e6, "curve": [(4_000, 0.5), (8_000, 0.25), (16_000, 0.125)]}
    fields |= {"data": {"fingerprint": "5eed" * 16}, "seconds": 60.0, "threads": 1, "precision": "float32"}
    return Facts(**({"machine": "by hand", "versions": {"torch": "2.13.0"}} | fields | changes))


def write(run: Path, made: Cell, found: Facts | None, final: Scores, before: Scores | None = None) -> Path:
    """A cell with its episodes; before: those after 75% of its training."""
    folder = write_cell(run, made, found)
    write_cell_episodes(run, made, "1.00", episodes(final))
    if before is not None:
        write_cell_episodes(run, made, "0.75", episodes(before))
    return folder


def hand_made_run(run: Path) -> Path:
    """Two experiments: one with five training seeds and a clear winner, one of a smoke run where everything is wrong."""
    m3dt = facts(parameters=987_654, active_parameters=987_654, windows=48_000, training_flop=1.5e13, action_flop=9.9e6)
    nothing = facts(parameters=0, active_parameters=0, windows=0, training_flop=0.0, action_flop=0.0, curve=[], data={})
    for seed in range(5):
        up = float(seed)
        folder = write(run, cell("m3dt-gradient", seed), m3dt, _four([100, 100 if seed else 0], 60 + up, 70, 80))
        weights = {task: [0.7 if e == i % 2 else 0.3 for e in range(2)] for i, task in enumerate(TASKS)}
        (folder / "expert_weights.json").write_text(json.dumps(weights))
        before = _four([100, 0], 51 + up, 62, 70)
        write(run, cell("prompt-dt", seed), facts(), _four([100, 0], 52 + up, 62, 72), before)
        write(run, cell("random", seed), nothing, _four([0, 0], 5, 10, 15))
    smoke = {"experiment": "table-1", "scale": "smoke"}
    other = facts(data={"fingerprint": "0bad" * 16})
    write(run, cell("m3dt-gradient", **smoke), m3dt, _four([100, 100], 80, 80, 80))
    write(run, cell("prompt-dt", **smoke), other, _four([100, 100], 60, 60, 60), _four([100, 0], 60, 60, 60))
    write(run, cell("ours|<b>&_$5", **smoke), facts(task_id="acting"), _four([100, 0], 70, 70, 70))
    write_cell(run, cell("harmo-dt", **smoke), None)
    return run


def _four(drawer: list[float], walker: float, ant: float, cheetah: float) -> Scores:
    """Two episodes per task, two points apart where that is possible."""
    return dict(zip(TASKS, (drawer, *([value - 1, value + 1] for value in (walker, ant, cheetah))), strict=True))


NAMED = Plan(contrast=("m3dt-gradient", "prompt-dt"))


def score(value: float) -> dict[str, list[float]]:
    """The same score in every episode of every task but Meta-World's, where one of two succeeds."""
    return {task: [100.0, 0.0] if task == "drawer-open" else [value, value] for task in TASKS}


def only_table(run: Path, plan: Plan | None = None, experiment: str = "claim", scale: str = "small") -> Table:
    [table] = build_report([run], {(experiment, scale): plan or Plan()}).tables
    return table


def row_of(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


def run_of(run: Path, ours: Sequence[float], theirs: Sequence[float], before: float | None = None, **changes: Any) -> Path:
    """m3dt-gradient and prompt-dt with these scores, one per training seed; before: of prompt-dt after 75%."""
    for seed, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        write(run, cell("m3dt-gradient", seed, **changes), facts(), score(a))
        write(run, cell("prompt-dt", seed, **changes), facts(), score(b), None if before is None else score(before))
    return run
