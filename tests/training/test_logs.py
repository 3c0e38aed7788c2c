"""The CSV logs of runs: what is read, added and dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3dt_agent.training.logs import COLUMNS, LogRecord, RunLog, add_rows, learning_curves, log_file, mean_losses, read_log


def row(step: int, expert: str, loss: float) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"step": str(step), "expert": expert, "loss": repr(loss)}


def record(step: int, *losses: float, experts: tuple[int, ...] = ()) -> LogRecord:
    return LogRecord(
        stage="experts" if experts else "backbone",
        step=step,
        steps=10,
        experts=experts,
        losses=losses,
        grad_norms=losses,
        learning_rate=0.5,
        conflict=None,
        seconds=1.0,
    )


def test_curves_come_from_the_logs_with_experts_averaged(tmp_path: Path) -> None:
    columns = "step,expert,loss,lr,grad_norm,conflict,seconds\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "backbone.csv").write_text(columns + "10,,0.5,1,1,,1\n20,,0.25,1,1,,2\n")
    (tmp_path / "logs" / "experts.csv").write_text(columns + "5,0,0.1,1,1,,1\n5,1,0.3,1,1,,1\n")
    (tmp_path / "logs" / "router.csv").write_text(columns)
    curves = learning_curves(tmp_path)
    assert curves["backbone"] == ([10, 20], [0.5, 0.25])
    assert curves["experts"] == ([5], [pytest.approx(0.2)])
    assert curves["router"] == ([], [])


def test_added_rows_replace_those_of_the_same_experts(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "experts.csv"
    add_rows(file, [row(1, "0", 0.5), row(2, "0", 0.25)])
    add_rows(file, [row(2, "1", 0.75), row(1, "1", 1.0)])
    assert mean_losses(file) == {1: 0.75, 2: 0.5}  # in the order of steps
    add_rows(file, [row(1, "0", 2.0)])
    assert [(found["step"], found["expert"]) for found in read_log(file)] == [("2", "1"), ("1", "1"), ("1", "0")]


def test_a_row_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    file = log_file(tmp_path, "backbone")
    add_rows(file, [row(1, "", 0.5)])
    with file.open("a") as log:
        log.write("2,,0.2")
    assert read_log(file) == [row(1, "", 0.5)]


def test_a_resumed_run_drops_its_own_rows_after_its_checkpoint(tmp_path: Path) -> None:
    file = log_file(tmp_path, "experts")
    add_rows(file, [row(step, expert, 0.5) for step in (1, 2) for expert in "01"])
    with RunLog(tmp_path, "experts-001-001", "experts", experts=(1,), step=1, steps=10, progress=False) as log:
        log.write(record(3, 0.125, experts=(1,)))
    assert [(found["step"], found["expert"]) for found in read_log(file)] == [("1", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    assert read_log(file)[-1]["loss"] == "0.125"


def test_there_is_no_curve_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mean_losses(log_file(tmp_path, "router"))
