"""What the performance programs share, and two of them run for real; how fast anything is, is not asked here."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.perf import frame
from benchmarks.perf.__main__ import PROGRAMS, run_all

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Row:
    what: str
    value: float


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    frame.add_options(parser)
    return parser.parse_args(arguments)


def perf(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.perf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(("rounds", "limit", "expected"), [(5, 60.0, 5), (5, 0.0, 3), (1, 60.0, 1), (2, 0.0, 2)])
def test_callables_are_timed_in_turns(rounds: int, limit: float, expected: int) -> None:
    calls: list[str] = []
    timing = frame.alternate([lambda: calls.append("a"), lambda: calls.append("b")], rounds=rounds, limit_seconds=limit)
    assert "".join(calls) == "ab" * expected
    assert timing.rounds == expected
    assert len(timing.medians) == 2
    assert all(median > 0 for median in timing.medians)


def test_peak_memory_is_what_a_run_adds() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell peak memory")
    kept: list[np.ndarray] = []

    def add(megabytes: int) -> None:
        kept.append(np.ones(megabytes * 1_000_000, np.uint8))

    def pass_through() -> None:
        add(100)
        kept.clear()

    for run in (lambda: add(100), pass_through):
        assert 90 < (frame.peak_mb(run) or 0) < 130
    assert (frame.peak_mb(lambda: None) or 0) < 20


def test_ceilings_are_measured_for_every_shape_and_precision() -> None:
    found = frame.matmul_ceilings([(64, 32, 16), (8, 8, 8)], budget_seconds=0.0)
    assert list(found) == ["float32", "bfloat16"]
    for shapes in found.values():
        assert list(shapes) == ["64 x 32 x 16", "8 x 8 x 8"]
    assert all(gflops > 0 for shapes in found.values() for gflops in shapes.values())


@pytest.mark.parametrize("row", [Row("a", 1.5), {"what": "a", "value": 1.5}])
def test_a_record_is_written_where_it_is_asked_for(row: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "record.json"
    for arguments, table in ([], True), (["--json"], False), (["--json", str(file)], True):
        args = options(*arguments)
        assert frame.table_wanted(args.json) == table
        frame.finish(frame.begin("some program", quick=args.quick), [row], json_path=args.json)
    printed, written = json.loads(capsys.readouterr().out), json.loads(file.read_text())
    assert written == printed | {"date": written["date"], "machine": written["machine"]}
    assert (written["program"], written["settings"]) == ("some program", {"quick": False})
    assert written["rows"] == [{"what": "a", "value": 1.5}]
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["memory_gb"] > 0.1


def test_every_program_of_the_folder_is_known() -> None:
    files = (ROOT / "benchmarks/perf").glob("[!_]*.py")
    assert {file.stem for file in files if "\ndef main(" in file.read_text()} == set(PROGRAMS)


@pytest.mark.slow
def test_programs_run_and_their_records_are_gathered(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = perf("bank", "startup", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    bank, startup = json.loads(file.read_text())["records"]
    assert (bank["program"], startup["program"]) == ("bank", "startup")
    assert bank["rows"][0]["over_reading"] == startup["rows"][0]["over_torch"] == 1.0
    for row in (*bank["rows"], *startup["rows"]):
        assert row["what"] in done.stdout
        assert row["seconds"] > 0


def test_a_program_that_does_not_exist_is_named() -> None:
    done = perf("nonsense")
    assert done.returncode == 2
    assert "unknown program nonsense; valid: model" in done.stderr


def test_a_record_that_could_not_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = perf("startup", "--json", str(tmp_path / "nowhere" / "found.json"))
    assert done.returncode == 2
    assert "nowhere/found.json" in done.stderr
    assert not done.stdout


def test_programs_that_fail_are_named_after_all_have_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    failed = run_all(["nonsense", "baseline"], quick=True, json_path=None)
    assert failed == ["nonsense (exit code 1)"]
    assert capsys.readouterr().out.split() == ["nonsense", "baseline"]
