"""What trackers are told of training in three stages, in jobs, and of evaluations; and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from row_examples import row
from small_trackers import Broken, Notebook

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import PathError
from m3dt_agent.scores import summarize
from m3dt_agent.training import fit_stage
from m3dt_agent.training.logs import LogRow, log_file, read_log
from m3dt_agent.training.tracking import Guarded
from m3dt_agent.training.tracking.runs import track_rows, track_scores

MakeBank = Callable[..., ExpertBank]
SHARED: dict[str, Any] = {"steps": 4, "batch_size": 4, "warmup_steps": 2, "log_every": 2}
STAGES: dict[str, Any] = {
    "backbone": BackboneConfig(**SHARED, conflict_every=2),
    "experts": ExpertsConfig(**SHARED, grouping="random", experts_at_once=2),
    "router": RouterConfig(**SHARED),
}


@pytest.fixture(scope="module")
def notebook(shared: tuple[TaskDatasets, ExpertBank]) -> tuple[Notebook, ExpertBank]:
    """What a tracker is told of three stages, and their bank."""
    (data, bank), told = shared, Notebook()
    for stage, config in STAGES.items():
        fit_stage(stage, data, bank, config, progress=False, trackers=[told])
    return told, bank


def test_a_tracker_is_told_of_every_run_and_changes_no_weight(
    notebook: tuple[Notebook, ExpertBank], data: TaskDatasets, make_bank: MakeBank
) -> None:
    told, bank = notebook
    alone = make_bank("alone")
    for stage, config in STAGES.items():
        fit_stage(stage, data, alone, config, progress=False, trackers=[Broken("start", SystemExit)])
    assert alone.content_hash == bank.content_hash
    starts, finishes = told.of("start"), told.of("finish")
    assert [run.name for run in starts] == ["backbone", "experts-000-001", "experts-002-002", "router"]
    assert len({run.experiment for run in starts}) == 1
    assert starts[0].experiment.startswith("bank-")
    other = Notebook()
    track_rows([Guarded(other)], alone, STAGES["experts"], read_log(log_file(alone.path, "experts")))
    assert other.of("start")[0].experiment != starts[0].experiment
    assert [found["bank"] for found in finishes[-1:]] == [bank.content_hash]
    assert [run.config["bank"] for run in starts[1:]] == [found["bank"] for found in finishes[:-1]]
    assert starts[3].config["stage"] == "router"
    assert starts[3].config["steps"] == 4
    assert starts[3].config["tasks"] == [task.name for task in data.tasks]
    assert str(bank.path.parent) not in repr([dict(run.config) for run in starts])
    assert not list(bank.path.glob("logs/tensorboard*"))  # which nobody asked for


def test_its_values_are_those_of_the_log(notebook: tuple[Notebook, ExpertBank]) -> None:
    told, bank = notebook
    logs = told.of("log")
    assert [step for _, step in logs] == [2, 4] * 4
    for stage in STAGES:
        rows = read_log(log_file(bank.path, stage))  # type: ignore[arg-type]
        found = [values for values, _ in logs if f"{stage}/loss" in values]
        if stage != "experts":
            assert [values[f"{stage}/loss"] for values in found] == [float(row["loss"]) for row in rows]
    assert logs[1][0]["backbone/conflict"] == float(read_log(log_file(bank.path, "backbone"))[1]["conflict"])
    assert set(logs[4][0]) >= {"experts/loss", "experts/loss/expert_002", "experts/learning_rate", "experts/seconds"}
    use = [value for name, value in logs[-1][0].items() if name.startswith("router/use/expert_")]
    assert len(use) == 3
    assert sum(use) == pytest.approx(1, abs=1e-5)


def test_jobs_are_told_of_from_their_rows(notebook: tuple[Notebook, ExpertBank]) -> None:
    """As `fit_stage(…, fanout=…)` does when a job's experts have come."""
    told, bank = notebook
    rows: list[LogRow] = [row for row in read_log(log_file(bank.path, "experts")) if row["expert"] != "2"]
    again = Notebook()
    track_rows([Guarded(again)], bank, STAGES["experts"], rows)
    before = next(i for i, (kind, run) in enumerate(told.told) if kind == "start" and run.name == "experts-000-001")
    for (kind, found), (_, expected) in zip(again.told[1:3], told.told[before + 1 : before + 3], strict=True):
        assert kind == "log"
        assert found[1] == expected[1]
        assert found[0] == pytest.approx(expected[0], abs=1e-3)  # seconds are rounded in the log
    assert again.of("start")[0].name == "experts-000-001"
    assert again.of("finish") == [{"bank": bank.content_hash}]


def test_an_evaluation_is_a_run_of_its_own(notebook: tuple[Notebook, ExpertBank]) -> None:
    told, bank = notebook
    scores = Notebook()
    summary = summarize([row("reach", success=True), row("reach", seed=1), row("ant-dir-7", length=200)])
    for _ in range(2):
        track_scores([Guarded(scores)], bank, summary, {"episodes": 2})
    first, second = scores.of("start")
    assert first.name.startswith("evaluation-")
    assert first.name != second.name
    assert first.experiment == told.of("start")[0].experiment
    assert (first.config["episodes"], first.config["policy"], first.config["bank"]) == (2, "test", bank.content_hash)
    assert scores.of("log")[0] == (
        {
            "score/mean": summary.mean_score,
            "score/iqm": summary.iqm_score,
            "score/reach": 50.0,
            "success/reach": 0.5,
            "score/ant-dir-7": summary.tasks["ant-dir-7"].mean_score,
        },
        0,
    )


def test_nothing_is_written_through_a_link(make_bank: MakeBank, tmp_path: Path) -> None:
    bank, theirs = make_bank(), tmp_path / "theirs"
    theirs.mkdir()
    (bank.path / "logs").symlink_to(theirs)
    with pytest.raises(PathError, match="symbolic link"):
        track_scores([Guarded(Notebook())], bank, summarize([row("reach")]), {})
    assert not list(theirs.iterdir())
