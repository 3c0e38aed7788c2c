"""The command line: experiments are listed, a run folder is reported on and checked, errors are one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmark_runs import cell, facts, score, write

from benchmarks.__main__ import main
from benchmarks.experiments import EXPERIMENTS


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return main()


def test_experiments_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list", "--json") == 0
    assert [found["name"] for found in json.loads(capsys.readouterr().out)] == list(EXPERIMENTS)


def test_the_status_of_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "status", "claim", "--out", str(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {(one["experiment"], one["finished"]) for one in found} == {("claim", False)}


def test_a_run_is_reported_on_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    for method, value in (("m3dt-gradient", 60.0), ("prompt-dt", 50.0)):
        write(run, cell(method), facts(), score(value))
    assert call(monkeypatch, "report", str(run), "--out", str(tmp_path / "report")) == 0
    assert "m3dt-gradient against prompt-dt" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "report" / "index.html").exists()
    assert call(monkeypatch, "compare", str(run), "--a", "m3dt-gradient", "--b", "prompt-dt") == 0
    assert "m3dt-gradient against prompt-dt" in capsys.readouterr().out


def test_a_run_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, cell("prompt-dt"), facts(), score(50))
    assert call(monkeypatch, "validate", str(tmp_path)) == 0
    assert "1 cells, 8 episodes, all valid" in capsys.readouterr().err
    (folder / "cell.json").write_text("{}")
    assert call(monkeypatch, "validate", str(tmp_path)) == 1
    assert f"error: {folder / 'cell.json'} is damaged" in " ".join(capsys.readouterr().err.split())


def test_a_path_may_begin_with_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shell does not expand it, as in `--out=~/run`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "run", cell("prompt-dt"), facts(), score(50))
    assert call(monkeypatch, "validate", "~/run") == 0
    assert call(monkeypatch, "report", "~/run", "--out=~/report") == 0
    assert (tmp_path / "report" / "index.html").exists()
