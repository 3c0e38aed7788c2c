"""TD-MPC2's 30-task dataset: files of thousands of episodes each, read through short-lived memory maps.

    chunk_<k>.pt    a TensorDict, (episodes, rows)     obs (E, R, …)  action (E, R, …)  reward (E, R)  task (E, R)

Row t > 0 holds an observation, and the action and reward that led to it; those of row 0 are NaN. So our episode is

    observations = obs[0 … 500]     actions = action[1 … 500]     rewards = reward[1 … 500]

Observations and actions are zero-padded to the width of the widest task. A file has many GB, and what was read through a
mapping stays in memory as long as the mapping, so a file is mapped again every few hundred episodes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3dt_agent.data.limits import MOST_NUMBERS
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.published.episodes import (
    MAX_EPISODES,
    Listing,
    PublishedEpisode,
    PublishedTask,
    Wanted,
    endings,
    make_episode,
    natural_order,
    require_keys,
    unpadded,
)
from m3dt_agent.hub.published.safe_pickles import map_tensordict
from m3dt_agent.tasks import TASKS, TaskSpec

_MAPPED_BYTES = 64_000_000  # read through one mapping before the file is mapped again
_PAGE_SLACK = 4 * 65_536  # bytes: Linux maps 64 KiB around a page that is touched, in each of the four tensors
_FIRST_TASK = 50  # task index i is row 50 + i of the task table
_N_TASKS = 30


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """The tensors of one file, mapped: E episodes of R rows."""

    obs: Tensor  # (E, R, ≥ obs_dim)
    action: Tensor  # (E, R, ≥ act_dim)
    reward: Tensor  # (E, R)
    task: Tensor  # (E, R) integers

    @property
    def episodes_per_mapping(self) -> int:
        """How many episodes may be read before the file has to be mapped again."""
        n_bytes = sum(tensor[0].nbytes for tensor in (self.obs, self.action, self.reward, self.task))
        return max(1, _MAPPED_BYTES // (n_bytes + _PAGE_SLACK))


def find_tdmpc2(path: Path, _: Wanted) -> Listing:
    """Finds the tasks in the file `path`, or in all files of that folder; reads the task column of each file."""
    files = sorted(path.glob("*.pt"), key=natural_order) if path.is_dir() else [path]
    columns = {file: _task_column(file) for file in files}
    found = sorted({int(i) for column in columns.values() for i in np.unique(column)})
    by_index = {i: TASKS[_FIRST_TASK + i] for i in found}
    return Listing({task.name: functools.partial(_open_tdmpc2, task, i, columns) for i, task in by_index.items()})


def _map_steps(file: Path) -> _Steps:
    tensors = map_tensordict(file)
    require_keys(str(file), tensors, ("obs", "action", "reward", "task"))
    steps = _Steps(*(tensors[key] for key in ("obs", "action", "reward", "task")))
    episodes_and_rows = steps.reward.shape
    shapes = (steps.obs.shape[:2], steps.action.shape[:2], steps.task.shape)
    if len(episodes_and_rows) != 2 or any(shape != episodes_and_rows for shape in shapes) or 0 in episodes_and_rows:
        found = ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in ("obs", "action", "reward", "task"))
        raise DatasetError(f"{file}: tensors must be (episodes, rows, …), reward and task (episodes, rows); got {found}")
    if (largest := max(tensor[0].numel() for tensor in (steps.obs, steps.action))) > MOST_NUMBERS:
        raise DatasetError(f"{file}: an episode has {largest:,} numbers; at most {MOST_NUMBERS:,} are read")
    if steps.task.is_floating_point() or steps.task.is_complex() or any(t.is_complex() for t in tensors.values()):
        raise DatasetError(f"{file}: task must hold integers and the others real numbers; task is {steps.task.dtype}")
    return steps


def _task_column(file: Path) -> NDArray[np.int64]:
    """The task of each episode, (E,)."""
    parts: list[NDArray[np.int64]] = []
    first, episodes = 0, 1
    while first < episodes:
        task = _map_steps(file).task  # mapped again: see the docstring of this module
        episodes, last = len(task), first + max(1, _MAPPED_BYTES // task[0].nbytes)
        parts.append(task[first:last, 0].to(torch.int64, copy=True).numpy())
        first = last
    column = np.concatenate(parts)
    if (odd := np.flatnonzero((column < 0) | (column >= _N_TASKS))).size:
        raise DatasetError(f"{file}, episode {odd[0]}: task {column[odd[0]]}; valid: 0 … {_N_TASKS - 1}")
    return column


def _open_tdmpc2(task: TaskSpec, index: int, columns: Mapping[Path, NDArray[np.int64]]) -> PublishedTask:
    chosen: dict[Path, NDArray[np.int64]] = {}
    left = MAX_EPISODES
    for file, column in columns.items():
        if (episodes := np.flatnonzero(column == index)[:left]).size:
            chosen[file] = episodes
            left -= len(episodes)
    original = ", ".join(file.name for file in chosen) + f", task {index}"
    read = functools.partial(_read_tdmpc2, task, index, chosen)
    return PublishedTask(task, original, tuple(chosen), read, MAX_EPISODES - left)


def _read_tdmpc2(task: TaskSpec, index: int, chosen: Mapping[Path, NDArray[np.int64]]) -> Iterator[PublishedEpisode]:
    for file, episodes in chosen.items():
        done = 0
        while done < len(episodes):
            steps = _map_steps(file)  # mapped again: see the docstring of this module
            for e in episodes[done : done + steps.episodes_per_mapping].tolist():
                yield _tdmpc2_episode(f"{file}, episode {e}", task, index, steps, e)
                done += 1


def _tdmpc2_episode(where: str, task: TaskSpec, index: int, steps: _Steps, e: int) -> PublishedEpisode:
    obs, action, reward = (tensor[e].to(torch.float32, copy=True).numpy() for tensor in (steps.obs, steps.action, steps.reward))
    if (other := np.flatnonzero(steps.task[e].numpy() != index)).size:
        raise DatasetError(f"{where}, row {other[0]}: task {steps.task[e, other[0]]} in an episode of task {index}")
    if not (np.isnan(action[0, : task.act_dim]).all() and np.isnan(reward[0])):
        raise DatasetError(f"{where}, row 0: action and reward must be NaN there, because nothing led to the first observation")
    length = len(reward) - 1
    return make_episode(
        where,
        task,
        {
            "observations": unpadded(where, "obs", obs, task.obs_dim),
            "actions": unpadded(where, "action", action[1:], task.act_dim),
            "rewards": reward[1:],
            **endings(where, task, np.zeros(length, np.bool_), length),
        },
    )
