"""What the published formats have in common: the records that their readers produce, and checks of episodes.

    finder(path, wanted tasks) → Listing ─ open["push"]() → PublishedTask ─ read() → PublishedEpisode, PublishedEpisode, …

A finder only lists files, `open` checks that all files of a task are there, and `read` streams its episodes, one in memory at a
time. Every problem is a `DatasetError` that names the file and, if there is one, the step.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3dt_agent.data.episodes import Episode
from m3dt_agent.data.validation import episode_problems
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.tasks import TaskSpec

Numbers = NDArray[Any]
Wanted = Sequence[TaskSpec] | None  # None: all tasks that are found

MAX_EPISODES = 2_000
"""Only the first episodes of a task are used, at most this many (authors' code, for their own files and TD-MPC2's)."""


@dataclass(frozen=True, slots=True, eq=False)
class PublishedEpisode:
    """One episode that fits its task. clipped: number of actions outside [-1, 1]; is_prompt: published as a prompt."""

    episode: Episode
    clipped: int
    is_prompt: bool


@dataclass(frozen=True, slots=True, eq=False)
class PublishedTask:
    """One task's episodes, not read yet.

    original: the name of the data where it was published. n_episodes: None if unknown before reading. metadata: entries for the
    metadata of the dataset.
    """

    task: TaskSpec
    original: str
    files: tuple[Path, ...]
    read: Callable[[], Iterator[PublishedEpisode]]
    n_episodes: int | None = None
    metadata: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """What lies at a path. open: task name → a function that opens the task. unknown: names that belong to no task."""

    open: Mapping[str, Callable[[], PublishedTask]]
    unknown: tuple[str, ...] = ()


def only_task(wanted: Wanted, what: str) -> TaskSpec:
    """The one task that is wanted, for data that do not say themselves which task they are of.

    what: what is imported, for errors.

    Raises:
        ConfigError: not exactly one task is wanted.
    """
    if wanted is None or len(wanted) != 1:
        raise ConfigError(f"{what} is imported as data of exactly one task, so name it; got {len(wanted or ())} tasks")
    return wanted[0]


def make_episode(
    where: str, task: TaskSpec, arrays: Mapping[str, Numbers], *, seed: int | None = None, is_prompt: bool = False
) -> PublishedEpisode:
    """Makes an episode of `arrays`, which have the names and shapes of `Episode`'s fields and any numeric type.

    Actions are clipped to [-1, 1].

    Raises:
        DatasetError: the episode does not fit the task, holds NaN or an infinity, or ends before its last step. The message
            begins with `where`.
    """
    if single := [name for name, array in arrays.items() if array.ndim == 0]:
        raise DatasetError(f"{where}: {single[0]} is a single number, not one per step")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes an infinity, and is reported as one
        episode = Episode(**arrays, seed=seed)
    clipped = np.where(np.isfinite(episode.actions), np.clip(episode.actions, -1.0, 1.0), episode.actions)
    n_clipped = int((clipped != episode.actions).reshape(len(clipped), -1).any(axis=1).sum()) if clipped.size else 0
    episode = dataclasses.replace(episode, actions=clipped)
    if problems := episode_problems({name: getattr(episode, name) for name in arrays}, task):
        raise DatasetError(f"{where}{problems[0]}")
    return PublishedEpisode(episode, n_clipped, is_prompt)


def endings(where: str, task: TaskSpec, dones: Numbers, length: int) -> dict[str, NDArray[np.bool_]]:
    """terminations and truncations, (L,) each, of an episode that was published with one flag per step, `dones`.

    The published flags do not distinguish the two, so the length does: an episode whose last flag is set and that is shorter
    than the task allows was terminated; every other one was truncated.

    Raises:
        DatasetError: there are more or fewer flags than steps, or a flag is set before the last step.
    """
    if dones.shape != (length,):
        raise DatasetError(f"{where}: the flags of its end are {dones.shape}; they must be ({length},)")
    over = np.flatnonzero(dones)
    if over.size and over[0] < length - 1:
        raise DatasetError(f"{where}, step {over[0]}: it is done here, but goes on to step {length - 1}")
    last = np.arange(length) == length - 1
    terminated = bool(over.size) and length < task.max_episode_steps
    return {"terminations": last & terminated, "truncations": last & (not terminated)}


def flat(values: Numbers) -> Numbers:
    """(L,) from (L,) or (L, 1). Any other shape is returned unchanged, and the check of shapes refuses it later."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def unpadded(where: str, name: str, values: Numbers, width: int) -> Numbers:
    """The first `width` columns of `values`, without the padding.

    Raises:
        DatasetError: `values` is too narrow, or the padding is not zero, as in data of another task. The message names the step
            and the column.
    """
    if values.ndim != 2 or values.shape[1] < width:
        raise DatasetError(f"{where}: {name} is {values.shape}; it must be {width} wide or wider")
    steps, columns = np.nonzero(values[:, width:])
    if steps.size:
        raise DatasetError(
            f"{where}, step {steps[0]}: {name} holds {values[steps[0], width + columns[0]]} in column {width + columns[0]}; "
            f"the task's are {width} wide and the rest must be zero, so this is data of another task"
        )
    return values[:, :width]


def require_keys(where: str, arrays: Mapping[str, object], keys: Sequence[str]) -> None:
    """Checks that `arrays` has all `keys`.

    Raises:
        DatasetError: some are missing; the message names them.
    """
    if missing := [key for key in keys if key not in arrays]:
        raise DatasetError(f"{where}: {', '.join(missing)} missing; it has {', '.join(sorted(arrays)) or 'nothing'}")


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts `chunk_2.pt` before `chunk_10.pt`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"([0-9]+)", path.name)]
