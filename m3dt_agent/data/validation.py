"""Checks whether a Minari dataset can be trained on, and lists every problem with its episode and step.

HDF5 and Minari check nothing when they write: float64, wrong widths, NaN and a missing final observation all pass silently.
Files are read with h5py and json alone (`hdf5_files`, `metadata`); shapes are compared with the task before an array is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..system.disk import user_path
from ..tasks import TaskSpec
from .hdf5_files import FLAGS, FLOATS, LABELS, SUCCESS, EpisodeArrays, RefusedError, count_episodes, open_steps
from .limits import LARGEST_VALUE
from .metadata import (
    METADATA_FILE,
    PROMPT_EPISODES,
    STEPS_FILE,
    count_problems,
    is_labelled,
    metadata_problems,
    read_metadata,
    read_prompt_episodes,
)

__all__ = [
    "METADATA_FILE",
    "PROMPT_EPISODES",
    "STEPS_FILE",
    "ScannedEpisode",
    "count_problems",
    "episode_problems",
    "is_labelled",
    "metadata_problems",
    "raw_episodes",
    "read_metadata",
    "read_prompt_episodes",
    "scan_episodes",
    "validate_dataset",
]

_ACTION_LIMIT = 1.0 + 1e-6  # the action space is [-1, 1]; float32 rounding may add an ulp
_UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError)  # what h5py raises

_NAMES = {SUCCESS: "success", LABELS: "demonstrator_actions"}  # of the fields of `Episode`

Arrays = dict[str, NDArray[Any]]


class _Shaped(Protocol):
    """An array, read or not."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class ScannedEpisode:
    """One episode as read from the file, with its problems.

    arrays: empty if they cannot be read or do not have the task's shapes. seed: None if not stored. steps: how many it has; 0
    if that is unknown.
    """

    index: int
    arrays: Arrays
    seed: int | None
    problems: tuple[str, ...]
    steps: int = 0


def validate_dataset(path: Path | str, task: TaskSpec) -> list[str]:
    """Lists everything that is wrong with the dataset at `path` as data for `task`, with episode and step; empty if valid."""
    path = user_path(path)
    try:
        metadata = read_metadata(path)
    except DatasetError as error:
        return [str(error)]
    problems = metadata_problems(metadata, task)
    episodes = steps = 0
    try:
        for episode in scan_episodes(path, task, labelled=is_labelled(metadata)):
            problems += episode.problems
            episodes += 1
            steps += episode.steps
    except DatasetError as error:
        return [*problems, str(error)]
    return problems + count_problems(metadata, episodes, steps)


def scan_episodes(path: Path, task: TaskSpec | None, *, labelled: bool = False) -> Iterator[ScannedEpisode]:
    """Reads the episodes of the dataset at `path` in order, with one in memory at a time; checks them against `task` if given.

    labelled: whether to read the labels too, of a dataset whose metadata say that it has them (`is_labelled`).

    Raises:
        DatasetError: the HDF5 file cannot be opened or is cut short, or its episodes are not numbered 0, 1, ….
    """
    file_path = path / STEPS_FILE
    with open_steps(file_path) as file:
        arrays = EpisodeArrays(file, file_path.stat().st_size)
        needed = (*FLOATS, *FLAGS, *((LABELS,) if labelled else ()))
        for index in range(count_episodes(file, file_path)):
            yield _scan(arrays, index, task, needed)


def raw_episodes(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[Arrays, int | None]]:
    """Reads these arrays of every episode of the dataset at `path`, whatever their shapes, and its seed, one after the other.

    Raises:
        DatasetError: the file cannot be opened or is damaged, or an array is missing, not of numbers, or refused.
    """
    file_path = path / STEPS_FILE
    with open_steps(file_path) as file:
        arrays = EpisodeArrays(file, file_path.stat().st_size)
        for index in range(count_episodes(file, file_path)):
            try:
                found, seed = arrays.of(index, needed, optional)
                yield {name: array[()] for name, array in found.items()}, seed
            except RefusedError as error:
                raise DatasetError(f"{path}, episode {index}: {error}") from error
            except DatasetError:
                raise
            except _UNREADABLE as error:
                raise DatasetError(f"{path}, episode {index} cannot be read: {error}") from error


def _scan(stored: EpisodeArrays, index: int, task: TaskSpec | None, needed: Sequence[str]) -> ScannedEpisode:
    try:
        found, seed = stored.of(index, needed)
        if task is not None and (long := _too_long(found, task)):
            raise RefusedError(long)
        named = {_NAMES.get(name, name): array for name, array in found.items()}
        steps = len(named["rewards"])
        if task is not None and (shapes := _layout_problems(named, task)):
            problems = [*shapes, *_dtype_problems(named)]
            return ScannedEpisode(index, {}, seed, tuple(f"episode {index}{where}" for where in problems), steps)
        arrays: Arrays = {name: array[()] for name, array in named.items()}
    except DatasetError:
        raise
    except RefusedError as error:
        return ScannedEpisode(index, {}, None, (f"episode {index}: {error}",))
    except _UNREADABLE as error:
        return ScannedEpisode(index, {}, None, (f"episode {index} cannot be read: {error}",))
    problems = [] if task is None else episode_problems(arrays, task)
    return ScannedEpisode(index, arrays, seed, tuple(f"episode {index}{where}" for where in problems), steps)


def _too_long(arrays: Mapping[str, _Shaped], task: TaskSpec) -> str | None:
    for name, array in arrays.items():
        if array.shape[0] > task.max_episode_steps + 1:
            return f"{name} has {array.shape[0]} entries; the task ends after {task.max_episode_steps} steps"
    return None


def episode_problems(arrays: Mapping[str, NDArray[Any]], task: TaskSpec) -> list[str]:
    """Lists what is wrong with one episode's arrays. Each text begins with ": " or ", step <t>: ", to follow "episode <i>"."""
    if len(arrays["actions"]) == 0:
        return [": it has no steps"]
    shapes = _layout_problems(arrays, task)
    problems = shapes + _dtype_problems(arrays)
    for name in FLOATS:
        problems += _value_problems(name, arrays[name])
    if "demonstrator_actions" in arrays:
        problems += _value_problems("demonstrator_actions", arrays["demonstrator_actions"][-len(arrays["actions"]) :])
    if not shapes:
        problems += _ending_problems(arrays, len(arrays["actions"]))
    return problems


def _layout_problems(arrays: Mapping[str, _Shaped], task: TaskSpec) -> list[str]:
    """What the shapes alone show."""
    length = arrays["actions"].shape[0]
    if length == 0:
        return [": it has no steps"]
    wanted: dict[str, tuple[int, ...]] = {"observations": (length + 1, task.obs_dim), "actions": (length, task.act_dim)}
    wanted |= dict.fromkeys(("rewards", *FLAGS), (length,))
    problems = []
    if length > task.max_episode_steps:
        problems.append(f": it has {length} steps; the task ends after {task.max_episode_steps}")
    for name, shape in wanted.items():
        found = arrays[name].shape
        if name == "observations" and found == (length, task.obs_dim):
            problems.append(f", step {length}: the final observation is missing: {length} observations for {length} actions")
        elif found != shape:
            problems.append(f": {name} is {found}; it must be {shape}")
    if "success" in arrays and arrays["success"].shape not in ((length,), (length + 1,)):
        problems.append(f": infos/success is {arrays['success'].shape}; it must be ({length + 1},) or ({length},)")
    labels = arrays["demonstrator_actions"].shape if "demonstrator_actions" in arrays else (length, task.act_dim)
    if labels not in ((length, task.act_dim), (length + 1, task.act_dim)):
        problems.append(f": {LABELS} is {labels}; it must be {(length + 1, task.act_dim)} or {(length, task.act_dim)}")
    return problems


def _dtype_problems(arrays: Mapping[str, _Shaped]) -> list[str]:
    wanted = dict.fromkeys((*FLOATS, "demonstrator_actions"), "float32") | dict.fromkeys((*FLAGS, "success"), "bool")
    return [
        f": {name} is {array.dtype}; it must be {wanted[name]}" for name, array in arrays.items() if array.dtype != wanted[name]
    ]


def _value_problems(name: str, values: NDArray[Any]) -> list[str]:
    if values.size == 0:
        return []  # its shape is wrong, which is reported already
    steps = values.reshape(len(values), -1)
    is_action = name in ("actions", "demonstrator_actions")
    limit = _ACTION_LIMIT if is_action else LARGEST_VALUE
    largest = np.abs(steps).max(axis=1)  # of a step; NaN if one of its numbers is
    if (largest <= limit).all():
        return []
    finite = np.isfinite(largest)
    bad = np.flatnonzero(~finite) if not finite.all() else np.flatnonzero(largest > limit)
    where, count = f", step {bad[0]}: {name}", f"(such steps: {len(bad)} of {len(values)})"
    if not finite.all():
        return [f"{where} holds {'NaN' if np.isnan(largest[bad[0]]) else 'an infinity'} {count}"]
    if is_action:
        return [f"{where} leave [-1, 1] {count}; clip them before storing"]
    return [f"{where} holds {largest[bad[0]]:.3g}; the largest that is taken is {LARGEST_VALUE:g} {count}"]


def _ending_problems(arrays: Mapping[str, NDArray[Any]], length: int) -> list[str]:
    over = np.flatnonzero(arrays["terminations"].astype(bool) | arrays["truncations"].astype(bool))
    if over.size and over[0] < length - 1:
        return [f", step {over[0]}: it is terminated or truncated here, but goes on to step {length - 1}"]
    return []
