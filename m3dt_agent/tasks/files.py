"""Tasks as tables of a TOML file:

[swing]
env = "Pendulum-v1"
domain = "classic"
obs_dim = 3
act_dim = 1
action_low = [-2.0]
action_high = [2.0]
max_episode_steps = 200
return_scale = 200.0
score = { low = -1500.0, high = 0.0 }
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from ..system.disk import path_errors, user_path, write_file
from ..system.toml import read_toml, toml_key, toml_lines
from .spec import TaskSpec


def read_tasks(path: Path) -> tuple[TaskSpec, ...]:
    """The tasks that a TOML file describes, in its order.

    Raises:
        ConfigError: it describes something that is no task, or is not TOML. PathError: it cannot be read.
    """
    path = user_path(path)
    found = []
    for name, table in read_toml(path, ConfigError).items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name!r} stands alone; a task is a table: [{name}]")
        found.append(TaskSpec.from_dict({"name": name, "domain": "own", **table}, name=f"{path}, task {name!r},"))
    return tuple(found)


def add_to_file(path: Path, spec: TaskSpec) -> None:
    """Adds a task to a TOML file, which is made if it is not there; what the file says stays.

    Raises:
        ConfigError: the file has a task of this name, or is none that `read_tasks` reads. PathError: it cannot be written.
    """
    path, before = user_path(path), ""
    if path.exists():
        if any(task.name == spec.name for task in read_tasks(path)):
            raise ConfigError(f"{path} has a task {spec.name!r} already; choose another name, or take its table out")
        before = path.read_text(encoding="utf-8").rstrip() + "\n\n"
    with path_errors(path):
        write_file(path, (before.lstrip() + to_toml([spec])).encode())


def to_toml(specs: Iterable[TaskSpec]) -> str:
    """The text of a file that `read_tasks` reads as these tasks."""
    return "\n".join(_table(spec) for spec in specs)


def _table(spec: TaskSpec) -> str:
    values = spec.to_dict()
    return f"[{toml_key(values.pop('name'))}]\n{toml_lines(values)}"
