"""Contrasts are better, worse or undecided; what limits a claim, and which cells are a row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from benchmark_runs import NAMED, cell, episode, facts, only_table, row_of, run_of, score, write
from own_tasks import SWING, WIDE

from benchmarks.experiments import EXPERIMENTS, cells
from benchmarks.experiments.task_sets import named
from benchmarks.records import write_cell
from benchmarks.report import compare
from benchmarks.report.comparison import build_report
from benchmarks.report.records import Plan
from benchmarks.report.tables import columns, task_columns
from benchmarks.runs.data import level_shares
from m3dt_agent import tasks
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.scores import wilson_interval
from m3dt_agent.scores.rows import write_rows


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([60, 61, 62, 60, 61], [50, 50, 50, 51, 51], "better"),
        ([50, 50, 50, 51, 51], [60, 61, 62, 60, 61], "worse"),
        ([50, 70, 40, 60, 55], [52, 60, 55, 50, 57], "undecided"),
        ([60, 61], [50, 52], "better"),
        ([60, 50], [55, 55], "undecided"),
    ],
)
def test_contrasts_are_better_worse_or_undecided(tmp_path: Path, ours: list[float], theirs: list[float], verdict: str) -> None:
    table = only_table(run_of(tmp_path / "run", ours, theirs), NAMED)
    [contrast] = table.contrasts
    assert contrast.verdict == verdict
    assert contrast.difference.estimate.conditional == (len(ours) < 5)
    assert any("conditional on the trained models" in note for note in table.notes) == (len(ours) < 5)
    words = compare([tmp_path / "run"], "m3dt-gradient", "prompt-dt", {("claim", "small"): NAMED})
    assert f"m3dt-gradient against prompt-dt: {verdict}. Mean score" in words


def test_other_contrasts_are_corrected_by_holm(tmp_path: Path) -> None:
    """The same small difference stands alone when it was named, and not among five that were not."""
    rng = np.random.default_rng(0)
    run = run_of(tmp_path / "run", [60, 61, 59, 62, 58], [56, 60, 57, 59, 57])
    for i in range(5):
        for seed, value in enumerate([56, 60, 57, 59, 57]):
            write(run, cell(f"other-{i}", seed), facts(), score(value + rng.normal(0, 0.05)))
    table = only_table(run, NAMED)
    named, *others = table.contrasts
    assert (named.named, named.verdict) == (True, "better")
    assert named.p_value == named.difference.p_value < 0.05
    assert [contrast.b for contrast in others] == [f"other-{i}" for i in range(5)]
    smallest = min(contrast.difference.p_value for contrast in others)
    assert min(contrast.p_value for contrast in others) == pytest.approx(5 * smallest)
    assert {contrast.verdict for contrast in others} == {"undecided"}


def test_without_the_first_of_the_named_contrast_all_others_stand_against_the_second(tmp_path: Path) -> None:
    for method in ("prompt-dt", "theirs", "mtdt"):
        write(tmp_path, cell(method), facts(), score(50))
    contrasts = only_table(tmp_path, NAMED).contrasts
    assert {(contrast.a, contrast.b, contrast.named) for contrast in contrasts} == {
        ("theirs", "prompt-dt", False),
        ("mtdt", "prompt-dt", False),
    }


def test_contrasts_and_plans_are_those_of_the_experiments(tmp_path: Path) -> None:
    planned = {found.id: found for found in cells("claim", "small")}
    run = run_of(tmp_path, [60.0], [50.0])
    write_cell(run, next(iter(planned.values())), None)  # begun
    table = build_report([run]).tables[0]
    assert [(contrast.a, contrast.b) for contrast in table.contrasts if contrast.named] == [EXPERIMENTS["claim"].contrast]
    assert f"{len(planned)} planned cells of this experiment not finished; the table is of those that are." in table.notes


def test_settings_that_an_experiment_varies_are_in_the_labels(tmp_path: Path) -> None:
    for width in (128, 32):
        settings = {"embed_dim": width, "backbone_steps": 1_000}
        write(tmp_path, cell("prompt-dt", settings=settings), facts(parameters=width), score(50))
    write(tmp_path, cell("m3dt-gradient", settings={"embed_dim": 64, "backbone_steps": 1_000}), facts(), score(60))
    table = only_table(tmp_path, NAMED)
    assert [row.label for row in table.rows] == ["m3dt-gradient", "prompt-dt (embed_dim=32)", "prompt-dt (embed_dim=128)"]
    assert [contrast.named for contrast in table.contrasts] == [True, True]
    assert any("2 pairs of rows, corrected by Holm" in note for note in table.notes)
    assert [row.parameters for row in table.rows[1:]] == [32, 128]
    assert compare([tmp_path], "prompt-dt (embed_dim=32)", "prompt-dt (embed_dim=128)", {}).count("undecided") == 1


def test_cells_that_experiments_share_stand_in_each(tmp_path: Path) -> None:
    shared, own = cell("prompt-dt"), cell("harmo-dt", experiment="other")
    write(tmp_path, shared, facts(), score(50))
    write(tmp_path, own, facts(), score(60))
    plans = {
        ("other", "small"): Plan(frozenset({shared.id, own.id, "not-there"})),
        ("third", "small"): Plan(frozenset({shared.id})),
        ("fourth", "small"): Plan(frozenset({shared.id, "not-there"})),
    }
    report = build_report([tmp_path], plans)
    assert [(t.experiment, [row.label for row in t.rows]) for t in report.tables] == [
        ("claim", ["prompt-dt"]),
        ("other", ["harmo-dt", "prompt-dt"]),
    ]
    assert "1 planned cell of this experiment not finished; the table is of those that are." in report.tables[1].notes
    assert report.also == ("third (small)",)


def test_two_machines_runs_merge(tmp_path: Path) -> None:
    write(tmp_path / "a", cell("prompt-dt", 0), facts(), score(40))
    write(tmp_path / "b", cell("prompt-dt", 1), facts(), score(60))
    write_cell(tmp_path / "b", cell("prompt-dt", 0), None)
    [table] = build_report([tmp_path / "b", tmp_path / "a"], {}).tables
    assert table.rows[0].scores.seeds == (0, 1)


def test_scores_per_task_have_wilsons_interval_where_they_are_success_rates(tmp_path: Path) -> None:
    table = only_table(run_of(tmp_path / "run", [60.0], [50.0]))
    drawer = row_of(table, "prompt-dt").by_task["drawer-open"]
    assert (drawer.mean, drawer.low, drawer.high) == (50.0, *(100 * end for end in wilson_interval(1, 2)))
    walker = row_of(table, "prompt-dt").by_task["walker-run"]
    assert (walker.mean, walker.low, walker.high) == (50.0, 50.0, 50.0)


@pytest.mark.usefixtures("own_registry")
def test_tasks_of_ones_own_are_in_every_table_and_returns_in_no_mean(tmp_path: Path) -> None:
    for spec in (SWING, WIDE):
        tasks.register(spec)
    names = ("walker-run", SWING.name, WIDE.name)
    made = cell("m3dt-gradient", tasks=names)
    folder = write_cell(tmp_path, made, facts())
    rows = [episode("walker-run", seed, 50.0) for seed in (1, 2)]
    for spec, value in ((SWING, -300.0), (WIDE, 12_345.0)):
        given = {"task": spec.name, "episode_return": value, "length": 10, "score": spec.score}
        rows += [dataclasses.replace(row, **given) for row in rows[:2]]
    write_rows(folder / "rows-1.00.jsonl", rows)
    table = only_table(tmp_path)
    assert (table.tasks, table.rows[0].mean.value) == (names, 65.0)
    header, [cells] = columns(table)
    assert dict(zip(header, cells, strict=True))["own tasks"] == "80.0"
    assert [line[:3] for line in task_columns(table)[1][1:]] == [
        [SWING.name, "-", "80.0 [80.0, 80.0]"],
        [f"{WIDE.name} (return)", "-", "12345.0 [12345.0, 12345.0]"],
    ]
    assert f"Scored by the return itself, and therefore in no mean: {WIDE.name}." in table.notes
    with pytest.raises(ConfigError, match="'own-swing' has none"):
        level_shares(SWING, "mixture")
    with pytest.raises(UnknownTaskError):
        named("only-own-swing", 0)
