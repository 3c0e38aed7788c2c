"""Which tasks a process knows, and what names mean."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3dt_agent import tasks
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.tasks import Linear, TaskSpec, registry, to_toml

pytestmark = pytest.mark.usefixtures("own_registry")

OWN = TaskSpec(
    "own-swing", "classic", obs_dim=3, act_dim=1, max_episode_steps=200, return_scale=200.0, score=Linear(-1500.0, 0.0)
)


def test_a_registered_task_is_found_by_name_and_by_domain() -> None:
    assert tasks.register(OWN) is OWN
    assert tasks.register(dataclasses.replace(OWN)) == OWN
    assert tasks.get("own-swing") is OWN
    assert tasks.known() == (*tasks.TASKS, OWN)
    assert tasks.by_domain("classic") == (OWN,)
    assert tasks.resolve(["classic", "own-swing", "reach"]) == (OWN, tasks.get("reach"))
    assert not tasks.is_builtin(OWN)
    with pytest.raises(UnknownTaskError, match="own-swing"):
        tasks.get("own-swin")


@pytest.mark.parametrize("name", ["reach", "metaworld", "mt10"])
def test_names_of_the_160_their_domains_and_sets_cannot_be_taken(name: str) -> None:
    with pytest.raises(ConfigError, match="160 tasks has this name"):
        tasks.register(dataclasses.replace(OWN, name=name))


def test_one_name_means_one_task() -> None:
    tasks.register(OWN)
    wider = dataclasses.replace(OWN, obs_dim=4)
    with pytest.raises(ConfigError, match="another task 'own-swing' is registered"):
        tasks.register(wider)
    with pytest.raises(ConfigError, match="two different tasks"):
        tasks.resolve([OWN, wider])


def test_a_spec_of_the_160_may_be_registered_again() -> None:
    tasks.register(tasks.get("reach"))
    assert tasks.known() == tasks.TASKS


def test_a_file_is_known_here_and_in_child_processes(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(to_toml([OWN, dataclasses.replace(OWN, name="second")]))
    assert [task.name for task in tasks.register_file(path)] == ["own-swing", "second"]
    tasks.register_file(path)
    assert os.environ[registry.TASKS_VARIABLE] == str(path)
    code = "from m3dt_agent import tasks; print(tasks.get('second').obs_dim, len(tasks.known()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["3", "162"]


def test_a_file_named_by_the_environment_that_is_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[swing]\nobs_dim = ")
    monkeypatch.setenv(registry.TASKS_VARIABLE, str(path))
    assert tasks.get("reach").name == "reach"  # the 160 need no file
    with pytest.raises(ConfigError, match=r"own\.toml is not a TOML file"):
        tasks.get("swing")
    path.write_text(to_toml([dataclasses.replace(OWN, name="swing")]))
    assert tasks.get("swing").obs_dim == 3


PLUGIN = """
from m3dt_agent.tasks import TaskSpec

def specs():
    return [TaskSpec(name, "plugged", obs_dim=2, act_dim=1, max_episode_steps=5, return_scale=1.0, score="return")
            for name in ("plug-a", "plug-b")]
"""


def _install_plugin(folder: Path, code: str) -> None:
    """What pip leaves of a package with one entry point."""
    (folder / "plugged_tasks.py").write_text(code)
    info = folder / "plugged_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[m3dt.tasks]\nmine = plugged_tasks:specs\n")


def test_installed_packages_register_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_plugin(tmp_path, PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [task.name for task in tasks.resolve(["plugged"])] == ["plug-a", "plug-b"]


def test_an_installed_package_whose_code_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_plugin(tmp_path, "def specs():\n    raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("plugged_tasks", None)
    with pytest.raises(ConfigError, match=r"'mine' of the package plugged-tasks fails.*broken"):
        tasks.get("plug-a")
