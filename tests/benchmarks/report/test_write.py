"""A run made by hand gives the stored report, which is the same whenever it is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_runs import PLANS, cell, hand_made_run

from benchmarks.records import write_cell
from benchmarks.report import compare, write_report
from benchmarks.report.comparison import build_report
from benchmarks.report.tables import document
from m3dt_agent.errors import ConfigError
from m3dt_agent.scores import wilson_interval

pytest.importorskip("matplotlib")


def test_the_report_of_the_stored_run_is_the_stored_report(golden: Path, written: tuple[Path, Path]) -> None:
    stored = golden / "benchmark_report" / "report"
    report = build_report([golden / "benchmark_report" / "run"], PLANS)
    assert document(report) == json.loads((stored / "report.json").read_text())
    files = sorted(path.relative_to(stored) for path in stored.rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:  # `written` is of the same run, see the next test
        assert (written[1] / file).read_text() == (stored / file).read_text(), (
            f"{file}; see tests/golden/make_benchmark_report.py"
        )


def test_the_stored_run_is_the_hand_made_one(golden: Path, tmp_path: Path) -> None:
    stored, made = golden / "benchmark_report" / "run", hand_made_run(tmp_path / "run")
    files = {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()} == files


def test_its_numbers_are_those_of_pencil_and_paper(written: tuple[Path, Path]) -> None:
    claim, smoke = json.loads((written[1] / "report.json").read_text())["tables"]
    ours, base, random = claim["rows"]
    # m3dt-gradient: 100 on drawer-open but for seed 0 (50), walker-run 60 to 64, ant-dir-3 70, cheetah-vel-22 80
    assert ours["mean"] == (90 + 62 + 70 + 80) / 4
    assert (ours["metaworld"], ours["dmcontrol"], ours["MW+DMC"], ours["Ant+Cheetah"]) == (90.0, 62.0, 76.0, 75.0)
    # of 20 cells the middle ten: 5 × 70 and 5 × 80, and of 60 … 64 and 50, 100 × 4 there are 6 below and 4 above
    assert ours["iqm"] == pytest.approx((64 + 5 * 70 + 4 * 80) / 10)
    low, high = wilson_interval(9, 10)
    assert (ours["success_rate"], ours["success_low"], ours["success_high"]) == (0.9, round(low, 4), round(high, 4))
    assert base["mean"] == (50 + 54 + 62 + 72) / 4
    assert base["last_quarter"] == pytest.approx((0 + 1 + 0 + 2) / 4)
    assert (random["mean"], random["windows"]) == (7.5, 0)
    named, other = claim["contrasts"]
    # per seed: (0 + 8 + 8 + 8) / 4 and, with both drawers open, (50 + 8 + 8 + 8) / 4
    differences = np.array([6.0, 18.5, 18.5, 18.5, 18.5])
    half = 2.776445 * differences.std(ddof=1) / np.sqrt(5)
    assert (named["a"], named["b"], named["named"], named["verdict"]) == ("m3dt-gradient", "prompt-dt", True, "better")
    assert [named[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([16, 16 - half, 16 + half], abs=1e-3)
    assert named["improvement"] == pytest.approx(((4 * 5 + 5 * 0.5) / 25 + 3) / 4)  # one of the five drawers draws
    assert (other["b"], other["named"]) == ("random", False)
    assert smoke["contrasts"][0]["verdict"] == "not comparable: different data"


@pytest.mark.slow
def test_a_report_is_the_same_whenever_it_is_written(written: tuple[Path, Path], tmp_path: Path) -> None:
    write_report([written[0]], tmp_path, PLANS)
    for file in sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()):
        assert (tmp_path / file).read_bytes() == (written[1] / file).read_bytes(), file


def test_a_run_with_nothing_finished_has_no_report(tmp_path: Path) -> None:
    write_cell(tmp_path, cell("prompt-dt"), None)
    with pytest.raises(ConfigError, match="none of the 1 cells is finished"):
        write_report([tmp_path], tmp_path / "report", {})
    assert not (tmp_path / "report").exists()


def test_a_comparison_of_what_is_not_there_names_what_is(written: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="no table has both 'm3dt-gradient' and 'm3dt'; there are m3dt-gradient, ours"):
        compare([written[0]], "m3dt-gradient", "m3dt", PLANS)
