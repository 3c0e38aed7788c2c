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

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..system.disk import open_regular, user_path
from .spec import TaskSpec

_MOST_BYTES = 4 << 20  # as of a JSON document


def read_tasks(path: Path) -> tuple[TaskSpec, ...]:
    """The tasks that a TOML file describes, in its order.

    Raises:
        ConfigError: it describes something that is no task, or is not TOML. PathError: it cannot be read.
    """
    path = user_path(path)
    with open_regular(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} has more than {_MOST_BYTES:,} bytes, the most that is read")
    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    found = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name!r} stands alone; a task is a table: [{name}]")
        found.append(TaskSpec.from_dict({"name": name, "domain": "own", **table}, name=f"{path}, task {name!r},"))
    return tuple(found)


def to_toml(specs: Iterable[TaskSpec]) -> str:
    """The text of a file that `read_tasks` reads as these tasks."""
    return "\n".join(_table(spec) for spec in specs)


def _table(spec: TaskSpec) -> str:
    values = spec.to_dict()
    lines = [f"[{_key(values.pop('name'))}]", *(f"{key} = {_text(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_text(one)}" for key, one in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value)  # strings, numbers and booleans are written alike in JSON and TOML
