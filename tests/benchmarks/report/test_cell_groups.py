"""Which cells share a table, and what an overview shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_runs import TASKS, cell, facts, only_table, score, write

from benchmarks.report import cell_groups
from benchmarks.report.comparison import build_report
from benchmarks.report.figures import write_overview_figures
from benchmarks.report.records import Contents
from benchmarks.report.tables import markdown

pytest.importorskip("matplotlib")


def test_task_set_seeds_with_the_same_tasks_are_training_seeds_and_others_are_not(tmp_path: Path) -> None:
    few, crossed = TASKS[1:], tmp_path / "crossed"
    for seed in range(3):
        write(tmp_path / "same", cell("prompt-dt", seed, task_set_seed=seed), facts(), score(50 + seed))
        for set_seed in range(2):
            write(crossed, cell("prompt-dt", seed, task_set_seed=set_seed), facts(), score(50 + seed))
    table = only_table(tmp_path / "same")
    assert (table.task_set_seeds, table.rows[0].scores.seeds) == ((0, 1, 2), (0, 1, 2))
    assert [table.task_set_seeds for table in build_report([crossed], {}).tables] == [(0,), (1,)]
    write(tmp_path / "same", cell("prompt-dt", 3, tasks=few), facts(), {task: [50.0] for task in few})
    assert [len(table.tasks) for table in build_report([tmp_path / "same"], {}).tables] == [3, 4]


def test_an_overview_shows_what_more_tasks_cost(tmp_path: Path) -> None:
    few = TASKS[1:3]
    for seed, lost in enumerate((10.0, 30.0)):
        write(tmp_path, cell("prompt-dt", seed, tasks=few, task_set="two"), facts(), {task: [80.0] for task in few})
        write(tmp_path, cell("prompt-dt", seed), facts(), {**score(80 - lost), "drawer-open": [100.0, 100.0]})
    write(tmp_path, cell("zero", 0), facts(), score(10))
    report = build_report([tmp_path], {})
    [overview] = report.overviews
    assert (overview.task_sets, overview.sizes) == (("two", "four"), (2, 4))
    first, last = overview.rows["prompt-dt"]
    assert first is not None
    assert last is not None
    assert (first.mean, first.low, first.high, first.runs) == (80.0, 80.0, 80.0, 2)
    assert (last.mean, last.low, last.high) == ((77.5 + 62.5) / 2, 62.5, 77.5)
    assert overview.lost("prompt-dt") == pytest.approx(100 * (1 - 70 / 80))
    assert overview.rows["zero"][0] is None
    assert overview.lost("zero") is None
    assert write_overview_figures(overview, tmp_path, "all") == ["all-tasks"]
    text = markdown(Contents({}, {"all": overview}, {"all": ["all-tasks"]}, report.also))
    assert r"| prompt-dt | 80.0 \(80.0 to 80.0; 2\) | 70.0 \(62.5 to 77.5; 2\) | 12.5% |" in text
    assert "![all-tasks](figures/all-tasks.png)" in text
    assert {"all-tasks.png", "all-tasks.svg"} <= {path.name for path in tmp_path.iterdir()}


def test_models_of_single_tasks_make_one_table(tmp_path: Path) -> None:
    for i, task in enumerate(TASKS[1:]):
        one = cell("prompt-dt", tasks=(task,), task_set=f"only-{task}")
        write(tmp_path, one, facts(windows=100), {task: [10.0 * i, 10.0 * i]}, {task: [10.0 * i, 10.0 * i]})
    table = only_table(tmp_path)
    assert (table.task_set, len(table.tasks)) == (cell_groups.SINGLE, 3)
    assert (table.rows[0].mean.value, table.rows[0].windows, table.rows[0].gain) == (10.0, 300, 0.0)
