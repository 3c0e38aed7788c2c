"""The command line: experiments are listed, a run folder is reported on and checked, errors are one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from benchmark_runs import cell, facts, score, write
from method_runs import EXAMPLE, put_example_on_path, put_on_path

from benchmarks.__main__ import main
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods import METHODS
from benchmarks.records import read_run


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


def test_methods_of_installed_packages_are_listed_and_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_example_on_path(tmp_path / "site", monkeypatch)
    assert call(monkeypatch, "methods", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == [*METHODS, "mlp-bc"]
    assert listed[-1] == {"name": "mlp-bc", "package": "mlp-bc 0.1.0", "settings": {"width": 256, "layers": 3}}
    chosen = ("--method", "mlp-bc", "--method", "prompt-dt", "--method", "mlp-bc")
    assert call(monkeypatch, "status", "methods", *chosen, "--out", str(tmp_path / "run"), "--json") == 0
    assert [one["method"] for one in json.loads(capsys.readouterr().out)] == ["mlp-bc", "prompt-dt"]
    assert call(monkeypatch, "run", "methods", "--method", "mlp-cb", "--out", str(tmp_path / "run")) == 1
    assert "error: unknown method 'mlp-cb'; did you mean mlp-bc" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_broken_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_on_path(tmp_path, monkeypatch, "import nothing_of_this_name", package="broken-package")
    for command in (("methods",), ("run", "methods", "--method", "mine", "--out", str(tmp_path / "run"))):
        assert call(monkeypatch, *command) == 1
        assert "error: the entry point 'my_method:METHOD' of broken-package 1.0 cannot be loaded" in " ".join(
            capsys.readouterr().err.split()
        )


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_method_from_its_own_package_is_reported_beside_prompt_dt(tmp_path: Path) -> None:
    """Installed by pip into an environment that borrows this one's dependencies, and run from the checkout."""
    root = Path(__file__).parents[2]
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    shutil.copytree(EXAMPLE, tmp_path / "package")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(tmp_path / "package")], check=True)

    def benchmarks(*arguments: str | Path) -> str:
        command = [python, "-m", "benchmarks", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run, report = tmp_path / "run", tmp_path / "report"
    methods = ("--method", "mlp-bc", "--method", "prompt-dt")
    benchmarks("run", "methods", *methods, "--scale", "smoke", "--out", run)
    assert benchmarks("run", "methods", *methods, "--scale", "smoke", "--out", run) == "", "nothing is done twice"
    results = {result.cell.method: result for result in read_run(run)}
    found = results["mlp-bc"]
    assert found.facts is not None
    assert results["prompt-dt"].facts is not None
    assert found.facts.windows == results["prompt-dt"].facts.windows
    assert found.facts.data == results["prompt-dt"].facts.data
    assert set(found.episodes) == {"0.75", "1.00"}
    assert {row.policy for row in found.final} == {"mlp-bc"}
    (table,) = json.loads(benchmarks("report", run, "--out", report, "--json"))["tables"]
    assert {row["method"] for row in table["rows"]} == {"mlp-bc", "prompt-dt"}
    assert [(contrast["a"], contrast["b"]) for contrast in table["contrasts"]] == [("mlp-bc", "prompt-dt")]
    assert "mlp-bc" in (report / "index.html").read_text()
    assert "mlp-bc against prompt-dt" in benchmarks("compare", run, "--a", "mlp-bc", "--b", "prompt-dt")


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
