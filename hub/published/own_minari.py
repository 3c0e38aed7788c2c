"""Minari datasets of tasks that are not among the 160, in the spaces of their own environment.

observations (L+1, …), or a group of them          ─► joined in the task's order, flat, float32
actions (L, …) in the environment's bounds         ─► [-1, 1], clipped where they leave the bounds
infos/success or infos/is_success, where there is  ─► success, latched
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m3dt_agent.data.metadata import METADATA_FILE, STEPS_FILE, count_problems, read_metadata, recorded_in
from m3dt_agent.data.validation import raw_episodes
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.hub.published.episodes import Numbers, PublishedEpisode, PublishedTask, make_episode
from m3dt_agent.tasks import TaskSpec
from m3dt_agent.tasks.spaces import fitting_spaces, from_env, space_from_json, spec_of_spaces

log = logging.getLogger(__name__)

_SUCCESS = ("infos/success", "infos/is_success")


def open_own(task: TaskSpec, path: Path, metadata: Mapping[str, Any]) -> PublishedTask:
    """The dataset at `path` as data of `task`, not read yet.

    Raises:
        DatasetError: its spaces are of a kind that cannot be used, or do not fit the task.
    """
    try:
        fitting_spaces(task, *_spaces(path, metadata), str(path))
    except ConfigError as error:
        raise DatasetError(f"{path} cannot be imported: {error}") from error
    recorded = recorded_in(metadata)
    if recorded not in (None, task.env_id):
        log.warning("%s was recorded in %s; it is taken for data of task %s", path, recorded, task.name)
    origin = {} if recorded is None else {"m3dt_recorded_in": recorded}
    original = str(metadata.get("dataset_id", path.name))[:200]
    files = (path / METADATA_FILE, path / STEPS_FILE)
    return PublishedTask(task, original, files, functools.partial(_read, task, path), None, origin)


def spec_of_dataset(path: Path, **given: Any) -> TaskSpec:
    """The spec of a task whose data are the Minari dataset at `path`: widths, bounds, length and environment are read from it.

    given: fields of `TaskSpec`; name and score are needed. return_scale: if not given, the largest return, in magnitude.

    Raises:
        DatasetError: there is no whole dataset. ConfigError: spaces that cannot be used, or what `TaskSpec` refuses.
    """
    metadata = read_metadata(path)
    spaces = _spaces(path, metadata)
    if given.get("return_scale") is None or given.get("max_episode_steps") is None:
        rewards = [arrays["rewards"] for arrays, _ in raw_episodes(path, ["rewards"], [])]
        given["max_episode_steps"] = given.get("max_episode_steps") or max(map(len, rewards))
        given["return_scale"] = given.get("return_scale") or max(abs(float(r.sum())) for r in rewards) or 1.0
    if (recorded := recorded_in(metadata)) is not None:
        given.setdefault("env", recorded)
    return spec_of_spaces(*spaces, None, str(path), **{"domain": "own", **given})


def _spaces(path: Path, metadata: Mapping[str, Any]) -> tuple[Any, Any]:
    keys = {"observation_space": "the observation", "action_space": "the action"}
    return tuple(space_from_json(metadata.get(key), f"{what} of {path}") for key, what in keys.items())  # type: ignore[return-value]


def _read(task: TaskSpec, path: Path) -> Iterator[PublishedEpisode]:
    parts = [f"observations/{key}" for key in task.observation] or ["observations"]
    episodes = steps = 0
    needed = (*parts, "actions", "rewards", "terminations", "truncations")
    for index, (arrays, seed) in enumerate(raw_episodes(path, needed, _SUCCESS if task.has_success else ())):
        made = _episode(f"{path}, episode {index}", task, arrays, parts, seed)
        episodes, steps = episodes + 1, steps + made.episode.length
        yield made
    if problems := count_problems(read_metadata(path), episodes, steps):
        raise DatasetError(f"{path}: {problems[0]}")


def _episode(where: str, task: TaskSpec, arrays: Mapping[str, Numbers], parts: list[str], seed: int | None) -> PublishedEpisode:
    length = len(arrays["actions"])
    if short := [name for name in parts if len(arrays[name]) != length + 1]:
        raise DatasetError(f"{where}: {short[0]} has {len(arrays[short[0]])} entries; {length} actions need {length + 1}")
    actions = arrays["actions"].reshape(length, -1)
    if actions.shape[1] != task.act_dim:
        raise DatasetError(f"{where}: actions are {arrays['actions'].shape}; the task has {task.act_dim}")
    found = {
        "observations": np.concatenate([arrays[name].reshape(length + 1, -1) for name in parts], axis=1),
        "actions": from_env(task, actions),
        **{name: arrays[name] for name in ("rewards", "terminations", "truncations")},
    }
    if task.has_success:
        name = next((name for name in _SUCCESS if name in arrays), None)
        if name is None:
            raise DatasetError(f"{where}: the task has success, and there is neither {' nor '.join(_SUCCESS)}")
        found["success"] = np.logical_or.accumulate(arrays[name].astype(bool).reshape(-1)[-length:])
    return make_episode(where, task, found, seed=seed)
