"""Minari datasets: one folder for each, read with h5py and never by Minari.

data/metadata.json      counts, and which task it is if it was made here
data/main_data.hdf5     a group for each episode
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m3dt_agent.data.episodes import to_episode
from m3dt_agent.data.validation import (
    METADATA_FILE,
    STEPS_FILE,
    ScannedEpisode,
    count_problems,
    read_metadata,
    read_prompt_episodes,
    scan_episodes,
)
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.hub.published.episodes import (
    Listing,
    Numbers,
    PublishedEpisode,
    PublishedTask,
    Wanted,
    make_episode,
)
from m3dt_agent.tasks import TaskSpec


def find_minari(path: Path, wanted: Wanted) -> Listing:
    """Finds the Minari dataset in the folder `path`, as data of the one task that is wanted.

    Raises:
        ConfigError: not exactly one task is wanted; the dataset itself does not say which task it is.
    """
    if wanted is None or len(wanted) != 1:
        raise ConfigError(f"a Minari dataset is imported as data of exactly one task; got {len(wanted or ())}")
    return Listing({wanted[0].name: functools.partial(_open_minari, wanted[0], path)})


def _open_minari(task: TaskSpec, path: Path) -> PublishedTask:
    metadata = read_metadata(path)
    if metadata.get("m3dt_task", task.name) != task.name:
        raise DatasetError(f"{path} holds data of task {metadata['m3dt_task']!r}, not {task.name!r}")
    stop = metadata.get("stop_after_success", 0)
    if type(stop) is not int or stop < 0:
        raise DatasetError(f"{path}: stop_after_success is {stop!r}; it must be an integer >= 0")
    original = str(metadata.get("dataset_id", path.name))
    files = (path / METADATA_FILE, path / STEPS_FILE)
    read = functools.partial(_read_minari, task, path)
    return PublishedTask(task, original, files, read, None, {"stop_after_success": stop})


def _read_minari(task: TaskSpec, path: Path) -> Iterator[PublishedEpisode]:
    metadata = read_metadata(path)
    prompts = read_prompt_episodes(metadata) or ()
    episodes = steps = 0
    for scanned in scan_episodes(path, task):
        where = f"{path}, episode {scanned.index}"
        if not scanned.arrays:  # other problems, such as float64, may disappear in the conversion
            raise DatasetError(f"{path}: {scanned.problems[0]}")
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
    return arrays
