"""The authors' MT160 data: a folder for each task, an .npz file for each episode.

    <published name>/
        0.npz, 1.npz, …    observations (L, 39), actions (L, 8), zero-padded; rewards and dones (or terminals), (L,) or (L, 1)

The last two files are the task's prompts. The final observation of an episode is not published, so the last one is repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.published.archives import read_npz, why_refused
from m3dt_agent.hub.published.episodes import (
    MAX_EPISODES,
    Listing,
    Numbers,
    PublishedEpisode,
    PublishedTask,
    Wanted,
    endings,
    flat,
    make_episode,
    require_keys,
    unpadded,
)
from m3dt_agent.tasks import MAX_ACT_DIM, MAX_OBS_DIM, TASKS, TaskSpec

N_PROMPT_FILES = 2
"""Number of files at the end of a task's folder that are its prompts (authors' code); the other 1,998 are for training."""

_NPZ_LIMIT = 64_000_000  # bytes; an episode of 500 steps takes 0.2 MB


def find_mt160(path: Path, _: Wanted) -> Listing:
    """Finds the tasks with a folder in `path`. Other folders are unknown, except hidden ones."""
    by_name = {task.published_name: task for task in TASKS if task.published_name}
    folders = sorted(folder for folder in path.glob("[!.]*") if folder.is_dir())
    return Listing(
        {by_name[f.name].name: functools.partial(_open_mt160, by_name[f.name], f) for f in folders if f.name in by_name},
        tuple(folder.name for folder in folders if folder.name not in by_name),
    )


def _open_mt160(task: TaskSpec, folder: Path) -> PublishedTask:
    names = {file.name for file in folder.glob("*.npz")}
    if odd := sorted(names ^ {f"{i}.npz" for i in range(len(names))}):
        raise DatasetError(f"{folder}: episodes must be 0.npz … {len(names) - 1}.npz; missing or unknown: {', '.join(odd[:6])}")
    if len(names) <= N_PROMPT_FILES:
        raise DatasetError(f"{folder} holds {len(names)} episode(s); the last {N_PROMPT_FILES} are prompts, so it needs more")
    files = tuple(folder / f"{i}.npz" for i in range(min(len(names), MAX_EPISODES)))
    read = functools.partial(_read_mt160, task, files)
    return PublishedTask(task, folder.name, files, read, len(files), {"m3dt_final_observation": "repeated"})


def _read_mt160(task: TaskSpec, files: Sequence[Path]) -> Iterator[PublishedEpisode]:
    for i, file in enumerate(files):
        yield _mt160_episode(task, file, is_prompt=i >= len(files) - N_PROMPT_FILES)


def _mt160_episode(task: TaskSpec, file: Path, *, is_prompt: bool) -> PublishedEpisode:
    arrays = _load_npz(file)
    dones = "dones" if "dones" in arrays else "terminals"
    require_keys(str(file), arrays, ("observations", "actions", "rewards", dones))
    observations, actions = arrays["observations"], arrays["actions"]
    length = len(actions) if actions.ndim else 0
    for name, wanted in (("observations", (length, MAX_OBS_DIM)), ("actions", (length, MAX_ACT_DIM))):
        if arrays[name].shape != wanted:
            raise DatasetError(f"{file}: {name} is {arrays[name].shape}; it must be {wanted}, padded with zeros")
    observations = unpadded(str(file), "observations", observations, task.obs_dim)
    return make_episode(
        str(file),
        task,
        {
            "observations": np.concatenate([observations, observations[-1:]]),  # see the docstring of this module
            "actions": unpadded(str(file), "actions", actions, task.act_dim),
            "rewards": flat(arrays["rewards"]),
            **endings(str(file), task, flat(arrays[dones]), length),
        },
        is_prompt=is_prompt,
    )


def _load_npz(file: Path) -> dict[str, Numbers]:
    try:
        return read_npz(file, _NPZ_LIMIT)
    except Exception as error:  # a damaged archive raises almost anything
        raise DatasetError(f"{file} cannot be read: {why_refused(error)}") from error
