"""Prompt-DT's pickles of ant-dir and cheetah-vel: lists of trajectories.

    ant_dir/ant_dir-<i>-<level>.pkl              [{"observations", "next_observations": (L, obs), "actions": (L, act),
    cheetah_vel/cheetah_vel-<i>-<level>.pkl        "rewards", "terminals": (L,) or (L, 1)}, …]
    …/<task>-<i>-prompt-<level>.pkl              the same; these are prompts

The files may also lie in the folder itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.published.episodes import (
    Listing,
    Numbers,
    PublishedEpisode,
    PublishedTask,
    Wanted,
    endings,
    flat,
    make_episode,
    natural_order,
    require_keys,
)
from m3dt_agent.hub.published.safe_pickles import load_arrays
from m3dt_agent.tasks import TASKS, TaskSpec

_PROMPT_DT_FILE = re.compile(r"(ant_dir|cheetah_vel)-([0-9]+)-(prompt-)?\w+\.pkl")
_KEYS = ("observations", "next_observations", "actions", "rewards", "terminals")


def find_prompt_dt(path: Path, _: Wanted) -> Listing:
    """Finds the pickles in `path` and its folders; other names are unknown. A task gets all of its levels, in order of name."""
    files = sorted([*path.glob("*.pkl"), *path.glob("[!.]*/*.pkl")], key=natural_order)
    names = {task.name for task in TASKS}
    by_task: dict[str, list[tuple[Path, bool]]] = {}
    unknown = []
    for file in files:
        match = _PROMPT_DT_FILE.fullmatch(file.name)
        name = f"{match[1].replace('_', '-')}-{int(match[2])}" if match else ""
        if match and name in names:
            by_task.setdefault(name, []).append((file, match[3] is not None))
        else:
            unknown.append(file.name)
    return Listing(
        {task.name: functools.partial(_open_prompt_dt, task, by_task[task.name]) for task in TASKS if task.name in by_task},
        tuple(unknown),
    )


def _open_prompt_dt(task: TaskSpec, found: Sequence[tuple[Path, bool]]) -> PublishedTask:
    ordered = sorted(found, key=lambda one: one[1])  # the sort is stable, and puts prompts last
    files = tuple(file for file, _ in ordered)
    if all(is_prompt for _, is_prompt in ordered):
        raise DatasetError(f"{files[0]}: task {task.name!r} has prompts but no trajectories to train on")
    return PublishedTask(task, ", ".join(file.name for file in files), files, functools.partial(_read_prompt_dt, task, ordered))


def _read_prompt_dt(task: TaskSpec, files: Sequence[tuple[Path, bool]]) -> Iterator[PublishedEpisode]:
    for file, is_prompt in files:
        for i, arrays in enumerate(load_arrays(file, _KEYS)):
            yield _prompt_dt_episode(f"{file}, trajectory {i}", task, arrays, is_prompt=is_prompt)


def _prompt_dt_episode(where: str, task: TaskSpec, arrays: Mapping[str, Numbers], *, is_prompt: bool) -> PublishedEpisode:
    require_keys(where, arrays, _KEYS)
    observations, following = arrays["observations"], arrays["next_observations"]
    if observations.ndim != 2 or observations.shape != following.shape:
        found = f"observations is {observations.shape}, next_observations {following.shape}"
        raise DatasetError(f"{where}: {found}; they must be of one shape, (steps, {task.obs_dim})")
    return make_episode(
        where,
        task,
        {
            "observations": np.concatenate([observations, following[-1:]]),
            "actions": arrays["actions"],
            "rewards": flat(arrays["rewards"]),
            **endings(where, task, flat(arrays["terminals"]), len(observations)),
        },
        is_prompt=is_prompt,
    )
