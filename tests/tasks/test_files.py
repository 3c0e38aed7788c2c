"""Tasks in TOML files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from m3dt_agent.errors import ConfigError, PathError
from m3dt_agent.tasks import TASKS, Linear, TaskSpec, add_to_file, read_tasks, to_toml

SWING = TaskSpec(
    "swing", "classic", obs_dim=3, act_dim=1, max_episode_steps=200, return_scale=200.0, score=Linear(-1500.0, 0.0), env="A-v1"
)
BY_HAND = """
[swing]
env = "Pendulum-v1"
obs_dim = 3
act_dim = 1
action_low = [-2]
action_high = [2]
max_episode_steps = 200
return_scale = 200
score = { low = -1500, high = 0 }
env_kwargs = { g = 9.81 }
"""


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(BY_HAND)
    (task,) = read_tasks(path)
    assert (task.name, task.domain, task.action_bounds, task.env_kwargs) == ("swing", "own", ((-2.0,), (2.0,)), {"g": 9.81})
    assert task.normalized_score(-150.0) == 90.0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    nested = dataclasses.replace(
        SWING, name="a-b", observation=("x", "goal/xyz"), env_kwargs={'q"': [1, "ä\n"]}, score="success"
    )
    path = tmp_path / "own.toml"
    path.write_text(to_toml([SWING, nested, *TASKS]), encoding="utf-8")
    assert read_tasks(path) == (SWING, nested, *TASKS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[swing", "not a TOML file"),
        ("swing = 3", "a task is a table"),
        ("[swing]\nobs_dim = 3", "'swing', is damaged or foreign: it lacks"),
        (BY_HAND + "colour = 1", "colour"),
        (BY_HAND.replace("obs_dim = 3", "obs_dim = 0"), "obs_dim must be an integer from 1"),
        ("x = " + "[" * 5000, "not a TOML file"),
        ("#" * (5 << 20), "has more than"),
    ],
)
def test_a_file_that_describes_no_task_says_where(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_tasks(path)
    assert "own.toml" in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing.toml", tmp_path / "pipe"):
        with pytest.raises(PathError):
            read_tasks(path)


def test_a_task_is_added_to_what_a_file_says(tmp_path: Path) -> None:
    file, other = tmp_path / "own.toml", dataclasses.replace(SWING, name="other")
    add_to_file(file, other)
    file.write_text("# mine\n" + file.read_text())
    add_to_file(file, SWING)
    assert read_tasks(file) == (other, SWING)
    assert file.read_text().startswith("# mine\n")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="has a task 'swing' already"):
        add_to_file(file, SWING)
    assert file.read_bytes() == before
