"""Minari datasets: one folder for each, read with h5py and never by Minari.

data/metadata.json      counts, and which task it is if it was made here
data/main_data.hdf5     a group for each episode
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m3dt_agent.data.episodes import to_episode
from m3dt_agent.data.metadata import (
    METADATA_FILE,
    STEPS_FILE,
    count_problems,
    is_labelled,
    origin_problems,
    read_metadata,
    read_prompt_episodes,
    recorded_in,
)
from m3dt_agent.data.validation import ScannedEpisode, scan_episodes
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.published.episodes import (
    Listing,
    Numbers,
    PublishedEpisode,
    PublishedTask,
    Wanted,
    make_episode,
    only_task,
)
from m3dt_agent.hub.published.own_minari import open_own
from m3dt_agent.system.disk import user_path
from m3dt_agent.tasks import TaskSpec, is_builtin

log = logging.getLogger(__name__)


def dataset_folder(path: Path) -> Path:
    """The folder of a Minari dataset: `path`, or, if nothing is there, the one of this id in Minari's own root.

    That root is MINARI_DATASETS_PATH, by default ~/.minari/datasets. Nothing is downloaded: that is Minari's.
    """
    if path.exists() or path.is_absolute():
        return path
    kept = user_path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")) / path
    return kept if kept.exists() else path


def find_minari(path: Path, wanted: Wanted) -> Listing:
    """Finds the Minari dataset in the folder `path`, as data of the one task that is wanted.

    Data of a task that is not among the 160 are in the spaces of its environment (own_minari.py), unless this package wrote
    them.

    Raises:
        ConfigError: not exactly one task is wanted.
    """
    task = only_task(wanted, "a Minari dataset")
    return Listing({task.name: functools.partial(_open_minari, task, path)})


def _open_minari(task: TaskSpec, path: Path) -> PublishedTask:
    metadata = read_metadata(path)
    if not is_builtin(task) and metadata.get("m3dt_task") is None:
        return open_own(task, path, metadata)
    if problems := origin_problems(metadata, task):
        raise DatasetError(f"{path} cannot be imported for task {task.name!r}: {problems[0]}")
    recorded = recorded_in(metadata)
    if recorded not in (None, task.env_id):
        log.warning("%s was recorded in %s; it is taken for data of task %s", path, recorded, task.name)
    stop = metadata.get("stop_after_success", 0)
    if type(stop) is not int or not 0 <= stop <= task.max_episode_steps:
        raise DatasetError(f"{path}: stop_after_success is {stop!r}; it must be an integer from 0 to {task.max_episode_steps}")
    original = str(metadata.get("dataset_id", path.name))[:200]
    files = (path / METADATA_FILE, path / STEPS_FILE)
    read = functools.partial(_read_minari, task, path)
    origin = {} if recorded in (None, task.env_id) else {"m3dt_recorded_in": recorded}
    return PublishedTask(task, original, files, read, None, {"stop_after_success": stop, **origin})


def _read_minari(task: TaskSpec, path: Path) -> Iterator[PublishedEpisode]:
    metadata = read_metadata(path)
    prompts = read_prompt_episodes(metadata) or ()
    episodes = steps = 0
    for scanned in scan_episodes(path, task, labelled=is_labelled(metadata)):
        where = f"{path}, episode {scanned.index}"
        if not scanned.arrays:  # other problems, such as float64, may disappear in the conversion
            raise DatasetError(f"{path}, {scanned.problems[0]}")
        made = make_episode(where, task, _minari_arrays(scanned), seed=scanned.seed, is_prompt=scanned.index in prompts)
        episodes, steps = episodes + 1, steps + made.episode.length
        yield made
    if problems := count_problems(metadata, episodes, steps):
        raise DatasetError(f"{path}: {problems[0]}")


def _minari_arrays(scanned: ScannedEpisode) -> dict[str, Numbers]:
    episode = to_episode(scanned)
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    arrays: dict[str, Numbers] = {name: getattr(episode, name) for name in names}
    if episode.success is not None:  # in our datasets success stays True once it is; in others it may not
        arrays["success"] = np.logical_or.accumulate(episode.success)
    if episode.demonstrator_actions is not None:
        arrays["demonstrator_actions"] = episode.demonstrator_actions
    return arrays
