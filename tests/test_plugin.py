"""A package that registers tasks by an entry point: its tasks are there in every command, in workers, in jobs and in Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from test_packaging import wheel as wheel

PACKAGE = Path(__file__).parent / "plugin_package"
NAMES = ["line-left", "line-right"]
IN_PYTHON = """
import json
from m3dt_agent import EvalConfig, ExpertBank, M3DTAgent, TaskDatasets, tasks
from m3dt_agent.envs.make import make_env
from m3dt_agent.evaluation import evaluate, evaluate_in_jobs
from m3dt_agent.jobs import LocalProcesses

if __name__ == "__main__":
    names = [task.name for task in tasks.resolve(["lines"])]
    env, agent = make_env(tasks.get(names[0])), M3DTAgent.load("bank")
    obs, _ = env.reset(seed=0)
    agent.reset(names[0])
    env.step(agent.act(obs))
    config = EvalConfig(episodes=1, workers=2)
    rows = evaluate(agent, names, config, progress=False)
    in_jobs = evaluate_in_jobs(ExpertBank.open("bank"), names, EvalConfig(episodes=1), LocalProcesses(2), progress=False)
    data = TaskDatasets.open("datasets", names)
    print(json.dumps([names, [row.task for row in rows], [row.task for row in in_jobs], [len(p.returns) for p in data.packed]]))
"""


@pytest.fixture(scope="module")
def plugged(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the two packages; it borrows the dependencies of this one, as torch is large."""
    home, source = tmp_path_factory.mktemp("plugged"), tmp_path_factory.mktemp("source") / "package"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*")) / "site-packages"
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.copytree(PACKAGE, source)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-build-isolation", str(wheel), str(source)], check=True)
    return home / "bin"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a dozen processes that import everything
def test_the_tasks_of_an_installed_package_are_everywhere(plugged: Path, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "M3DT_TASKS")}

    def run(*command: object) -> str:
        told = [str(part) for part in command]
        done = subprocess.run(told, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, (told, done.stdout, done.stderr)
        return done.stdout

    def m3dt(*arguments: object) -> Any:
        return json.loads(run(plugged / "m3dt", *arguments, "--json"))

    where = run(plugged / "python", "-c", "import m3dt_agent, m3dt_lines; print(m3dt_agent.__file__, m3dt_lines.__file__)")
    assert all(path.startswith(str(plugged.parent)) for path in where.split())
    assert [task["name"] for task in m3dt("tasks")][160:] == NAMES
    assert [task["name"] for task in m3dt("tasks", "lines")] == NAMES
    assert m3dt("doctor")["own_tasks"] == dict.fromkeys(NAMES, "ok")
    collected = m3dt("collect", "lines", "--policy", "m3dt_lines:walker", "--source", "walked", "--episodes", 5, "--workers", 2)
    assert {row["task"]: row["episodes"] for row in collected} == dict.fromkeys(NAMES, 5)
    assert all(row["mean_normalized_score"] > 75 for row in collected)
    checked = m3dt("data", "validate", "lines")
    assert [(row["task"], row["problems"]) for row in checked] == [(name, []) for name in NAMES]
    run(plugged / "m3dt", "train", "lines", "--bank", "bank", "--preset", "tiny", "--experts", 2, "--steps", 20)
    described = m3dt("info", "bank")
    assert (described["tasks"], set(described["specs"])) == (NAMES, set(NAMES))
    evaluated = m3dt("eval", "bank", "--episodes", 2, "--workers", 2)
    assert {name: row["episodes"] for name, row in evaluated["tasks"].items()} == dict.fromkeys(NAMES, 2)
    on_ray = m3dt("eval", "bank", "--episodes", 2, "--ray", "local")
    assert on_ray["tasks"] == evaluated["tasks"]
    played = m3dt("play", NAMES[1], "--bank", "bank")
    assert (played["task"], played["length"]) == (NAMES[1], 12)
    (tmp_path / "script.py").write_text(IN_PYTHON)
    assert json.loads(run(plugged / "python", "script.py")) == [NAMES, NAMES, NAMES, [5, 5]]


def test_the_tasks_of_a_package_on_the_path_are_known(
    own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """The same without pip: the package's folder and what pip would leave of its entry point."""
    from m3dt_agent.cli.doctor import states_of_own_tasks

    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"m3dt_lines-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {value}" for name, value in project["entry-points"]["m3dt.tasks"].items())
    (info / "entry_points.txt").write_text(f"[m3dt.tasks]\n{points}\n")
    for folder in (tmp_path, PACKAGE):
        monkeypatch.syspath_prepend(str(folder))
    assert [task["name"] for task in json.loads(run("tasks", "--json")[1])][160:] == NAMES
    assert states_of_own_tasks() == dict.fromkeys(NAMES, "ok")
    monkeypatch.delitem(gym.registry, "m3dt-lines/Line-v0")
    told = states_of_own_tasks()
    assert list(told) == NAMES
    assert all("Gymnasium cannot make 'm3dt-lines/Line-v0'" in state for state in told.values())


def test_a_package_whose_tasks_cannot_be_is_named_by_doctor(
    own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3dt_agent.cli.doctor import states_of_own_tasks

    (tmp_path / "own.toml").write_text("[swing]")
    monkeypatch.setenv("M3DT_TASKS", str(tmp_path / "own.toml"))
    assert "own.toml, task 'swing', is damaged or foreign" in states_of_own_tasks()["?"]
