"""Continual learning at the smallest scale: what is kept, what the measures are, and that a killed study continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments.task_sets import HELD_OUT
from benchmarks.studies import continual
from benchmarks.studies.continual import GROUPS, Measure, Result, measures
from m3dt_agent.tasks import get

pytest.importorskip("mujoco")


def test_every_group_has_a_task_of_each_domain() -> None:
    assert sorted(task for group in GROUPS for task in group) == sorted(HELD_OUT)
    assert all(len({get(task).domain for task in group}) == 4 for group in GROUPS)


def test_the_measures_are_those_of_continual_world() -> None:
    ours = Result(
        "fine-tuned", 0, {"old": 40.0, "a": 50.0, "b": 70.0}, {"old": 60.0, "a": 80.0, "b": 70.0}, {"a": 60.0, "b": 50.0}
    )
    scratch = Result("from scratch", 0, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, {"a": 20.0, "b": 100.0})
    found = {name: measure.value for name, measure in measures([ours], [scratch], ["old"]).items()}
    assert found == {
        "average performance": 60.0,
        "forgetting": 15.0,
        "forward transfer": pytest.approx((100 * 40 / 80 + 100 * -50 / 1) / 2),  # the least room is a point
        "old tasks": 40.0,
        "forgetting of old tasks": 20.0,
    }


def test_an_interval_is_over_seeds_and_tasks() -> None:
    cells = np.random.default_rng(0).normal(50, 10, (3, 16))
    measure = Measure.of(cells)
    assert measure.value == pytest.approx(cells.mean())
    assert measure.low < measure.value < measure.high
    assert 2 < measure.high - measure.low < 20
    assert Measure.of(np.full((3, 4), 7.0)) == Measure(7.0, 7.0, 7.0)


@pytest.mark.slow
def test_the_study_runs_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["continual", str(tmp_path / "out"), "--datasets", str(tmp_path / "data"), "--scale", "smoke"]

    def run() -> list[dict[str, Any]]:
        file = tmp_path / "found.json"
        monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "2", "--workers", "0", "--json", str(file)])
        continual.main()
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
        return rows

    rows = run()
    found = {(row["arm"], row["measure"]): row["value"] for row in rows}
    assert found["grown", "forgetting"] == found["grown", "forgetting of old tasks"] == 0.0
    assert found["from scratch", "forward transfer"] == 0.0
    assert len(rows) == 18
    played = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rows").rglob("*.jsonl")}
    assert run() == rows
    assert played == {path: path.stat().st_mtime_ns for path in played}
