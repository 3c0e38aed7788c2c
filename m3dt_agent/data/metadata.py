"""Reads the metadata of a Minari dataset, and lists what is wrong with it: another task's data, another format, other spaces.

    <dataset>/data/metadata.json        spaces, counts, env_spec, m3dt_task, m3dt_source, stop_after_success,
                                        m3dt_prompt_episodes, m3dt_labelled

The file is read as JSON and nothing in it is executed. Minari is not used, because it creates the environment that a dataset
names if a space is missing from the metadata, and so runs code from the dataset (docs/architecture.md#data).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..system.documents import read_document
from ..tasks import TaskSpec
from .limits import MOST_EPISODES

METADATA_FILE = Path("data", "metadata.json")
STEPS_FILE = Path("data", "main_data.hdf5")
PROMPT_EPISODES = "m3dt_prompt_episodes"
"""Metadata key of datasets that name their prompt episodes. The value is a text: a JSON list of episode indices."""

LABELLED = "m3dt_labelled"
"""Metadata key of datasets whose episodes have the demonstrator's own actions, `infos/demonstrator_action`: true."""

_OUR_ENVIRONMENT = re.compile(r"M3DT/(.+)-v[0-9]+")
_NO_JSON = (TypeError, ValueError, KeyError, AttributeError, RecursionError)
"""What a text of a stranger makes `json.loads` and the first look at its value raise."""


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the dataset at `path`.

    Raises:
        DatasetError: there is no dataset, it is in Minari's Arrow format, it was not written to the end, or its metadata is not
            a JSON object.
    """
    _require_file(path, METADATA_FILE)
    metadata = read_document(path / METADATA_FILE, dict[str, Any], DatasetError)
    if metadata.get("data_format") == "arrow":
        raise DatasetError(
            f"{path}: data_format is 'arrow', and only 'hdf5' is read; write its episodes again as docs/data.md shows "
            "(write_dataset takes the episodes of minari.load_dataset)"
        )
    _require_file(path, STEPS_FILE)
    return metadata


def _require_file(path: Path, file: Path) -> None:
    try:
        (path / file).stat()
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        reason = "is missing" if missing else f"cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise DatasetError(f"{path} is not a whole dataset: {file} {reason}") from error
    if not (path / file).is_file():
        raise DatasetError(f"{path} is not a whole dataset: {file} is not a regular file")


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
    except _NO_JSON:
        found = None
    if (
        not isinstance(found, list)
        or not 0 < len(found) <= MOST_EPISODES
        or any(type(i) is not int or i < 0 for i in found)
        or len(set(found)) < len(found)
    ):
        raise DatasetError(
            f"{PROMPT_EPISODES} is {_shown(text)}; it must be a JSON list of different episodes, such as '[3, 4]'"
        )
    return tuple(found)


def is_labelled(metadata: Mapping[str, Any]) -> bool:
    """Whether the episodes have the demonstrator's own actions beside those that were done."""
    return metadata.get(LABELLED) is True


def metadata_problems(metadata: Mapping[str, Any], task: TaskSpec) -> list[str]:
    """Lists what is wrong with a dataset's metadata: its task, format, spaces, marks and prompt episodes."""
    problems = []
    if metadata.get("data_format", "hdf5") != "hdf5":
        problems.append(f"data_format is {_shown(metadata['data_format'])}; only 'hdf5' is read")
    problems += origin_problems(metadata, task)
    stop = metadata.get("stop_after_success", 0)
    if type(stop) is not int or not 0 <= stop <= task.max_episode_steps:
        problems.append(f"stop_after_success is {_shown(stop)}; it must be an integer from 0 to {task.max_episode_steps}")
    if type(metadata.get(LABELLED, False)) is not bool:
        problems.append(f"{LABELLED} is {_shown(metadata[LABELLED])}; it must be true or false")
    try:
        read_prompt_episodes(metadata)
    except DatasetError as error:
        problems.append(str(error))
    for key, width in (("observation_space", task.obs_dim), ("action_space", task.act_dim)):
        problems += _space_problems(metadata, key, width)
    return problems


def origin_problems(metadata: Mapping[str, Any], task: TaskSpec) -> list[str]:
    """Lists where the metadata names another task than `task`, or actions outside the task's [-1, 1].

    Fifty tasks have the same widths, so that data of the wrong one would otherwise go unnoticed. An environment that is none of
    this package's says nothing about the task, and is accepted.
    """
    problems = []
    named = metadata.get("m3dt_task", task.name)
    recorded = recorded_in(metadata)
    ours = _OUR_ENVIRONMENT.fullmatch(recorded or "")
    if named != task.name:
        problems.append(f"it holds data of task {_shown(named)}, not {task.name!r}")
    elif ours and ours[1] != task.name:
        problems.append(f"it was recorded in {recorded}: it holds data of task {ours[1]!r}, not {task.name!r}")
    return problems + _bound_problems(metadata)


def recorded_in(metadata: Mapping[str, Any]) -> str | None:
    """The id of the environment that a dataset says it was recorded in (its env_spec's); None if it names none."""
    with contextlib.suppress(*_NO_JSON):
        found = json.loads(metadata["env_spec"])["id"]
        return found[:200] if isinstance(found, str) else None
    return None


def _bound_problems(metadata: Mapping[str, Any]) -> list[str]:
    try:
        space = json.loads(metadata["action_space"])
        low, high = np.asarray(space["low"], np.float64), np.asarray(space["high"], np.float64)
    except _NO_JSON:
        return []  # it declares no bounds
    if (low == -1).all() and (high == 1).all():
        return []
    first = np.flatnonzero((low != -1).ravel() | (high != 1).ravel())[:1] if low.shape == high.shape else [0]
    bounds = f"[{low.flat[first[0]]:g}, {high.flat[first[0]]:g}]" if low.size and high.size else "nothing"
    return [
        f"action_space declares actions in {bounds} where the task's are in [-1, 1]; rescale the actions, "
        "and declare the bounds that they then have"
    ]


def _space_problems(metadata: Mapping[str, Any], key: str, width: int) -> list[str]:
    text = metadata.get(key)
    if text is None:
        return [f"{key} is missing from the metadata"]
    try:
        space = json.loads(text)
        found = (space["type"], tuple(space["shape"]), space["dtype"])
    except _NO_JSON:
        return [f"{key} in the metadata is not a Box: {_shown(text)}"]
    wanted = ("Box", (width,), "float32")
    shown = f"{str(found[0])[:80]}{str(found[1])[:80]} {str(found[2])[:80]}"
    return [] if found == wanted else [f"{key} is {shown}; the task's is Box{wanted[1]} float32"]


def _shown(value: object) -> str:
    """A stranger's value for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


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
            f"the metadata counts {_shown(counted[0])} episodes and {_shown(counted[1])} steps, "
            f"the file holds {episodes} and {steps}: it was not written to the end, or changed later"
        )
    with contextlib.suppress(DatasetError):  # metadata_problems reports it
        if prompts := [i for i in read_prompt_episodes(metadata) or () if i >= episodes]:
            problems.append(f"{PROMPT_EPISODES} names episode {prompts[0]}; the last is {episodes - 1}")
    return problems
