"""Checks whether a Minari dataset can be trained on, and lists every problem with its episode and step.

HDF5 and Minari check nothing when they write: float64, wrong widths, NaN and a missing final observation all pass silently.
Files are read with h5py and json alone. Minari is not used, because it creates the environment that a dataset names if a space
is missing from the metadata, and so runs code from the dataset (docs/architecture.md#data).

    <dataset>/data/metadata.json        spaces, counts, m3dt_task, m3dt_source, stop_after_success, m3dt_prompt_episodes
    <dataset>/data/main_data.hdf5       episode_<i>/observations (L+1, obs_dim), actions (L, act_dim), rewards, terminations,
                                        truncations (L,), infos/success (L+1,) or (L,)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..tasks import TaskSpec

if TYPE_CHECKING:
    import h5py  # a tenth of torch's own import time, so functions that need it import it

METADATA_FILE = Path("data", "metadata.json")
STEPS_FILE = Path("data", "main_data.hdf5")
PROMPT_EPISODES = "m3dt_prompt_episodes"
"""Metadata key of datasets that name their prompt episodes. The value is a text: a JSON list of episode indices."""

_FLOATS = ("observations", "actions", "rewards")
_FLAGS = ("terminations", "truncations")
_OPTIONAL = ("infos/success",)
_MOST_NUMBERS = 1 << 24  # 128 MB as float64; 160 tasks need 19,539, and a shape can promise what no file holds
_ACTION_LIMIT = 1.0 + 1e-6  # the action space is [-1, 1]; float32 rounding may add an ulp

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ScannedEpisode:
    """One episode as read from the file, with its problems. arrays: empty if they cannot be read. seed: None if not stored."""

    index: int
    arrays: Arrays
    seed: int | None
    problems: tuple[str, ...]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the dataset at `path`.

    Raises:
        DatasetError: there is no dataset, it was not written to the end, or its metadata is not a JSON object.
    """
    for file in (METADATA_FILE, STEPS_FILE):
        if not (path / file).is_file():
            raise DatasetError(f"{path} is not a whole dataset: {file} is missing")
    try:
        metadata = json.loads((path / METADATA_FILE).read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path / METADATA_FILE} cannot be read: {error}") from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"{path / METADATA_FILE} holds a {type(metadata).__name__}, not an object")
    return metadata


def read_prompt_episodes(metadata: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The prompt episodes that a dataset's metadata names; None if it names none, so that the best episodes are chosen.

    Raises:
        DatasetError: the entry is not a JSON list of different indices.
    """
    text = metadata.get(PROMPT_EPISODES)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        found = None
    if (
        not isinstance(found, list)
        or not found
        or any(type(i) is not int or i < 0 for i in found)
        or len(set(found)) < len(found)
    ):
        raise DatasetError(f"{PROMPT_EPISODES} is {text!r}; it must be a JSON list of different episodes, such as '[3, 4]'")
    return tuple(found)


def validate_dataset(path: Path, task: TaskSpec) -> list[str]:
    """Lists everything that is wrong with the dataset at `path` as data for `task`, with episode and step; empty if valid."""
    try:
        metadata = read_metadata(path)
    except DatasetError as error:
        return [str(error)]
    problems = metadata_problems(metadata, task)
    episodes = steps = 0
    try:
        for episode in scan_episodes(path, task):
            problems += episode.problems
            episodes += 1
            steps += len(episode.arrays.get("rewards", ()))
    except DatasetError as error:
        return [*problems, str(error)]
    return problems + count_problems(metadata, episodes, steps)


def metadata_problems(metadata: Mapping[str, Any], task: TaskSpec) -> list[str]:
    """Lists what is wrong with a dataset's metadata: its task, format, spaces, `stop_after_success` and prompt episodes."""
    problems = []
    if metadata.get("data_format", "hdf5") != "hdf5":
        problems.append(f"data_format is {metadata['data_format']!r}; only 'hdf5' is read")
    if metadata.get("m3dt_task", task.name) != task.name:
        problems.append(f"it holds data of task {metadata['m3dt_task']!r}, not {task.name!r}")
    stop = metadata.get("stop_after_success", 0)
    if not isinstance(stop, int) or isinstance(stop, bool) or stop < 0:
        problems.append(f"stop_after_success is {stop!r}; it must be an integer >= 0")
    try:
        read_prompt_episodes(metadata)
    except DatasetError as error:
        problems.append(str(error))
    for key, width in (("observation_space", task.obs_dim), ("action_space", task.act_dim)):
        problems += _space_problems(metadata, key, width)
    return problems


def _space_problems(metadata: Mapping[str, Any], key: str, width: int) -> list[str]:
    text = metadata.get(key)
    if text is None:
        return [f"{key} is missing from the metadata"]
    try:
        space = json.loads(text)
        found = (space["type"], tuple(space["shape"]), space["dtype"])
    except (TypeError, ValueError, KeyError):
        return [f"{key} in the metadata is not a Box: {str(text)[:80]!r}"]
    wanted = ("Box", (width,), "float32")
    return [] if found == wanted else [f"{key} is {found[0]}{found[1]} {found[2]}; the task's is Box{wanted[1]} float32"]


def count_problems(metadata: Mapping[str, Any], episodes: int, steps: int) -> list[str]:
    """Lists where the metadata does not match the number of `episodes` and `steps` that are in the file.

    Minari writes the counts last, so if they do not match, the dataset was not written to the end.
    """
    if episodes == 0:
        return ["it holds no episodes"]
    problems = []
    counted = (metadata.get("total_episodes"), metadata.get("total_steps"))
    if counted != (episodes, steps):
        problems.append(
            f"the metadata counts {counted[0]} episodes and {counted[1]} steps, the file holds {episodes} and {steps}: "
            "it was not written to the end, or changed later"
        )
    with contextlib.suppress(DatasetError):  # metadata_problems reports it
        if prompts := [i for i in read_prompt_episodes(metadata) or () if i >= episodes]:
            problems.append(f"{PROMPT_EPISODES} names episode {prompts[0]}; the last is {episodes - 1}")
    return problems


def scan_episodes(path: Path, task: TaskSpec | None) -> Iterator[ScannedEpisode]:
    """Reads the episodes of the dataset at `path` in order, with one in memory at a time; checks them against `task` if given.

    Raises:
        DatasetError: the HDF5 file cannot be opened or is cut short, or its episodes are not numbered 0, 1, ….
    """
    import h5py

    file_path = path / STEPS_FILE
    try:
        file = h5py.File(file_path, "r")
    except OSError as error:
        raise DatasetError(f"{file_path} is not an HDF5 file, or is cut short: {error}") from error
    with file:
        _limit_cache(file)
        for index in range(_count_episodes(file, file_path)):
            yield _scan(file, index, task)


def _limit_cache(file: h5py.File) -> None:
    """Keeps HDF5's cache small. It would keep the index of every array, 145 MB after 2,000 episodes (measured), for nothing:
    no array is read twice."""
    config = file.id.get_mdc_config()
    config.max_size = config.initial_size
    file.id.set_mdc_config(config)


def _count_episodes(file: h5py.File, path: Path) -> int:
    try:
        names = set(file.keys())
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"{path} is damaged: its episodes cannot be listed: {error}") from error
    if odd := sorted(names ^ {f"episode_{i}" for i in range(len(names))}):
        raise DatasetError(
            f"{path}: episodes must be episode_0 … episode_{len(names) - 1}; missing or unknown: {', '.join(odd[:6])}"
        )
    return len(names)


def _scan(file: h5py.File, index: int, task: TaskSpec | None) -> ScannedEpisode:
    try:
        if problem := _structure_problem(file, f"episode_{index}", task):
            return ScannedEpisode(index, {}, None, (f"episode {index}: {problem}",))
        group = file[f"episode_{index}"]
        arrays: Arrays = {name: group[name][()] for name in (*_FLOATS, *_FLAGS)}
        if _OPTIONAL[0] in group:
            arrays["success"] = group[_OPTIONAL[0]][()]
        seed = group.attrs.get("seed")
        seed = None if seed is None else int(seed)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        return ScannedEpisode(index, {}, None, (f"episode {index} cannot be read: {error}",))
    problems = () if task is None else tuple(f"episode {index}{where}" for where in episode_problems(arrays, task))
    return ScannedEpisode(index, arrays, seed, problems)


def _structure_problem(file: h5py.File, episode: str, task: TaskSpec | None) -> str | None:
    """Why the arrays must not be read: kept outside the file, missing, not numbers, or too large.

    Everything is decided from the file's own records, before an array is read or a link is followed.
    """
    import h5py

    if problem := _outside(file, episode):
        return problem
    group = file[episode]
    if not isinstance(group, h5py.Group):
        return "is not a group"
    for name in (*_FLOATS, *_FLAGS, *_OPTIONAL):
        if problem := _outside(group, name):
            return problem
        field = group.get(name)
        if field is None and name in _OPTIONAL:
            continue
        if not isinstance(field, h5py.Dataset):
            return f"{name} is missing"
        if field.dtype.kind not in "fiub" or field.ndim == 0:
            return f"{name} is {field.dtype} {field.shape}, not an array of numbers"
        if task is not None and len(field) > task.max_episode_steps + 1:
            return f"{name} has {len(field)} entries; the task ends after {task.max_episode_steps} steps"
        if field.size > _MOST_NUMBERS:
            return f"{name} is {field.shape}; an array of an episode has at most {_MOST_NUMBERS:,} numbers"
    return None


def _outside(group: h5py.Group, name: str) -> str | None:
    """Why the object `name` is not a part of this very file, or None if it is or does not exist.

    A stranger's file may name other files of this machine: by a soft or external link, by external storage, or by a virtual
    dataset. HDF5 would read them as if they were the dataset.
    """
    import h5py

    where, _, rest = name.partition("/")
    link = group.get(where, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        return f"{where} is a link to somewhere else ({type(link).__name__}), which is never followed"
    found = group[where]
    if isinstance(found, h5py.Dataset):
        if found.is_virtual:
            return f"{where} is a virtual dataset, which reads other files"
        if found.external:
            return f"{where} keeps its numbers in another file"
    return _outside(found, rest) if rest and isinstance(found, h5py.Group) else None


def episode_problems(arrays: Mapping[str, NDArray[Any]], task: TaskSpec) -> list[str]:
    """Lists what is wrong with one episode's arrays. Each text begins with ": " or ", step <t>: ", to follow "episode <i>"."""
    length = len(arrays["actions"])
    if length == 0:
        return [": it has no steps"]
    shapes = _shape_problems(arrays, task, length)
    problems = shapes + _dtype_problems(arrays)
    for name in _FLOATS:
        problems += _value_problems(name, arrays[name])
    if not shapes:
        problems += _ending_problems(arrays, length)
    return problems


def _shape_problems(arrays: Mapping[str, NDArray[Any]], task: TaskSpec, length: int) -> list[str]:
    wanted: dict[str, tuple[int, ...]] = {"observations": (length + 1, task.obs_dim), "actions": (length, task.act_dim)}
    wanted |= dict.fromkeys(("rewards", *_FLAGS), (length,))
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
    return problems


def _dtype_problems(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    wanted = dict.fromkeys(_FLOATS, "float32") | dict.fromkeys((*_FLAGS, "success"), "bool")
    return [
        f": {name} is {array.dtype}; it must be {wanted[name]}" for name, array in arrays.items() if array.dtype != wanted[name]
    ]


def _value_problems(name: str, values: NDArray[Any]) -> list[str]:
    if values.size == 0:
        return []  # its shape is wrong, which is reported already
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        kind = "NaN" if np.isnan(values[bad[0]]).any() else "an infinity"
        return [f", step {bad[0]}: {name} holds {kind} (such steps: {len(bad)} of {len(values)})"]
    outside = np.abs(values).reshape(len(values), -1).max(axis=1, initial=0.0) > _ACTION_LIMIT
    if name == "actions" and outside.any():
        bad = np.flatnonzero(outside)
        return [f", step {bad[0]}: actions leave [-1, 1] (such steps: {len(bad)} of {len(values)}); clip them before storing"]
    return []


def _ending_problems(arrays: Mapping[str, NDArray[Any]], length: int) -> list[str]:
    over = np.flatnonzero(arrays["terminations"].astype(bool) | arrays["truncations"].astype(bool))
    if over.size and over[0] < length - 1:
        return [f", step {over[0]}: it is terminated or truncated here, but goes on to step {length - 1}"]
    return []
