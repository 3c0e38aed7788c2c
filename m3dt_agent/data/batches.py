"""Batches of windows and prompts, drawn from packed steps; every batch is a pure function of (seed, stage, expert, step).

A window is T = `context_length` steps from a uniform start s in a length-weighted episode of L training steps, that is, from a
uniformly drawn training step of the task, left-padded where the episode ends first:

    s ≤ L - T   [ s  s+1  …  s+T-1 ]        timesteps are the episode's own, returns-to-go run to the episode's end
    s > L - T   [ ·  ·  s  …  L-1 ]         · is padding: zeros, mask False

No window is padded because its episode has only begun, and none needs to be. `act` at step t sees the last T steps, fewer and
left-padded while t < T - 1. Attention is causal and padding changes no output, so the prediction at position j of the window
starting at 0 is exactly the one `act` makes at t = j, and the one at position T - 1 of the window starting at s is the one at
t = s + T - 1. Every context `act` can meet is thus drawn, and each with the same probability 1/L; windows at an episode's end
only add shorter contexts.

Sampling reads one contiguous slice of a pack per window; everything else is done once per batch, or per width of tasks. A batch
of 16 windows costs what its calls cost, not what its numbers do: there, `take` is three times as fast as an array as index.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import ModelConfig, Stage
from ..errors import ConfigError
from ..tasks import lookup
from .prompts import Prompt, prompt_window
from .stats import TaskStatistics
from .task_datasets import TaskDatasets
from .windows import Batch, Window, WindowArrays, empty_window

__all__ = ["Batch", "BatchSampler", "Window", "derive_seed"]


def derive_seed(seed: int, stage: str, expert: int, step: int, purpose: str = "") -> int:
    """A 63-bit seed for one purpose of one training step; the same in every process and on every machine."""
    text = json.dumps([int(seed), stage, int(expert), int(step), purpose])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class BatchSampler:
    """Draws the batches of one training run, or of one expert's share of it.

    Tasks are drawn first: `tasks_per_batch` of them, uniformly and without repeating one before all have come (None: one per
    window), each for an equal share of the windows, which lie next to each other in the batch. With `domain_weights`, domain →
    n, a task of that domain comes n times where another comes once. A window's prompt is one of its task's prompts, uniformly.

    Raises:
        UnknownTaskError: a task without statistics or prompts.
        ConfigError: a batch of no windows, or data that do not fit the model's widths or its timestep table.
        ShapeError: prompts that do not fit the model.
    """

    def __init__(
        self,
        data: TaskDatasets,
        statistics: Mapping[str, TaskStatistics],
        prompts: Mapping[str, Sequence[Prompt]],
        config: ModelConfig,
        *,
        batch_size: int,
        tasks_per_batch: int | None,
        seed: int,
        stage: Stage,
        expert: int = 0,
        domain_weights: Mapping[str, int] | None = None,
    ) -> None:
        _check(data, config, batch_size, tasks_per_batch)
        self.data, self.config, self.batch_size = data, config, batch_size
        self.tasks_per_batch = batch_size if tasks_per_batch is None else tasks_per_batch
        self._run = (seed, stage, expert)
        self._urn = np.repeat(np.arange(len(data.tasks)), [(domain_weights or {}).get(task.domain, 1) for task in data.tasks])
        self._turns = np.arange(batch_size) * self.tasks_per_batch // batch_size  # which of the drawn tasks each window is of
        self._widths = [(task.obs_dim, task.act_dim) for task in data.tasks]
        self._positions = np.arange(config.context_length)
        real_actions = np.arange(config.act_dim) < np.array([[task.act_dim] for task in data.tasks])
        self._real_actions = real_actions[:, None].repeat(config.context_length, axis=1)  # (n_tasks, T, act_dim)
        self._index = _EpisodeIndex(data)
        self._scaling = _Scaling(
            [lookup(dict(statistics), task.name, "task with statistics") for task in data.tasks], data, config
        )
        groups = [lookup(dict(prompts), task.name, "task with prompts") for task in data.tasks]
        self._prompt_counts = np.array([len(group) for group in groups])
        self._first_prompt = np.cumsum(self._prompt_counts) - self._prompt_counts
        of_each = [statistics[task.name] for task, group in zip(data.tasks, groups, strict=True) for _ in group]
        self._prompts = prompt_window([prompt for group in groups for prompt in group], of_each, config).to_arrays()

    def sample(self, step: int) -> Batch:
        """The batch of training step `step`; B = batch_size, T = context_length, prompts prompt_length long."""
        rng = np.random.default_rng(derive_seed(*self._run, step, "batch"))
        wanted, size = self.tasks_per_batch, len(self._urn)
        drawn = np.concatenate([self._urn[rng.permutation(size)] for _ in range(-(-wanted // size))])[:wanted]
        return self._draw(drawn.take(self._turns), rng)

    def sample_task(self, task_index: int, step: int) -> Batch:
        """A batch of windows of one task alone, for its gradient; drawn independently of `sample` and of other tasks.

        Raises:
            ConfigError: no such task.
        """
        if not 0 <= task_index < len(self.data.tasks):
            raise ConfigError(f"task_index must be in [0, {len(self.data.tasks)}); got {task_index}")
        name = self.data.tasks[task_index].name
        rng = np.random.default_rng(derive_seed(*self._run, step, f"task {name}"))
        return self._draw(np.full(self.batch_size, task_index), rng)

    def _draw(self, tasks: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Windows of the given tasks, (B,)."""
        T = self.config.context_length
        first, start, real = self._index.draw(tasks, T, rng)
        prompts = self._first_prompt.take(tasks) + rng.integers(self._prompt_counts.take(tasks))
        arrays = empty_window(len(tasks), T, self.config)
        self._copy_steps(arrays, tasks.tolist(), first.tolist(), real.tolist())
        self._scaling.apply(arrays, tasks)
        np.add((start + real - T)[:, None], self._positions, out=arrays.timesteps)
        action_mask = self._real_actions.take(tasks, axis=0)
        _clear_padding(arrays, action_mask, (T - real).tolist())
        return Batch(
            torch.from_numpy(tasks),
            arrays.to_window(),
            self._prompts.take(prompts).to_window(),
            torch.from_numpy(action_mask),
        )

    def _copy_steps(self, arrays: WindowArrays, tasks: list[int], first: list[int], real: list[int]) -> None:
        """Raw rows first[b] … first[b] + real[b] - 1 of the window's task into the right end of window b, columns split."""
        T = self.config.context_length
        groups: defaultdict[tuple[int, int], tuple[list[int], list[bytes]]] = defaultdict(lambda: ([], []))
        for b, (task, begin, count) in enumerate(zip(tasks, first, real, strict=True)):
            rows, runs = groups[self._widths[task]]  # windows of tasks equally wide are split together
            rows.append(b)
            runs.append(self.data.packed[task].read(begin, count, T))
        for (obs_dim, act_dim), (rows, runs) in groups.items():
            raw = np.frombuffer(b"".join(runs), np.float32).reshape(len(rows), T, -1)
            to = np.array(rows) if len(groups) > 1 else slice(None)
            arrays.states[to, :, :obs_dim] = raw[:, :, :obs_dim]
            arrays.actions[to, :, :act_dim] = raw[:, :, obs_dim:-1]
            arrays.returns_to_go[to] = raw[:, :, -1:]


def _clear_padding(arrays: WindowArrays, action_mask: NDArray[np.bool_], padding: list[int]) -> None:
    """Zeros in the padding[b] padded steps of window b, and the mask; actions and returns-to-go are zero there already."""
    arrays.mask[:] = True
    for b, padded in enumerate(padding):  # few are, except where episodes are hardly longer than windows
        if padded:
            arrays.states[b, :padded] = 0.0
            arrays.timesteps[b, :padded] = 0
            arrays.mask[b, :padded] = False
            action_mask[b, :padded] = False


class _EpisodeIndex:
    """Where the training episodes of all tasks lie: one line of all their steps, task after task, episode after episode."""

    def __init__(self, data: TaskDatasets) -> None:
        kept = [np.array(data.train_episodes(i)) for i in range(len(data.tasks))]
        lengths = np.concatenate([packed.lengths[rows] for packed, rows in zip(data.packed, kept, strict=True)])
        self._ends = np.cumsum(lengths)  # on the line
        self._begins = self._ends - lengths
        self._first_rows = np.concatenate([packed.offsets[rows] for packed, rows in zip(data.packed, kept, strict=True)])
        self._task_totals = np.array([packed.lengths[rows].sum() for packed, rows in zip(data.packed, kept, strict=True)])
        self._task_begins = np.cumsum(self._task_totals) - self._task_totals

    def draw(
        self, tasks: NDArray[np.int64], length: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Per window (B,): its first row in the pack, its first timestep, and how many of its `length` steps are real."""
        anchor = self._task_begins.take(tasks) + rng.integers(self._task_totals.take(tasks))
        episode = self._ends.searchsorted(anchor, side="right")
        start = anchor - self._begins.take(episode)
        return self._first_rows.take(episode) + start, start, np.minimum(length, self._ends.take(episode) - anchor)


class _Scaling:
    """Per-task statistics stacked and padded to the model's widths, so that a mixed batch is scaled in one go."""

    def __init__(self, statistics: Sequence[TaskStatistics], data: TaskDatasets, config: ModelConfig) -> None:
        n_tasks = len(statistics)
        # as long as a window: stretching one row over its steps takes twice as long as copying them
        self._mean = np.zeros((n_tasks, config.context_length, config.state_dim), np.float32)
        self._std = np.ones((n_tasks, config.context_length, config.state_dim), np.float32)
        for i, (task, s) in enumerate(zip(data.tasks, statistics, strict=True)):
            if len(s.mean) != task.obs_dim:
                raise ConfigError(
                    f"the statistics of task {task.name!r} are {len(s.mean)} wide, its observations {task.obs_dim}"
                )
            self._mean[i, :, : task.obs_dim], self._std[i, :, : task.obs_dim] = s.mean, s.std
        clips = [np.inf if s.state_clip is None else s.state_clip for s in statistics]
        self._clip = np.array(clips, np.float32)[:, None, None]
        self._one_clip = self._clip[0, 0, 0] if len(set(clips)) == 1 else None  # five times as fast to clip to as an array
        self._return_scale = np.array([s.return_scale for s in statistics], np.float32)[:, None, None]

    def apply(self, arrays: WindowArrays, tasks: NDArray[np.int64]) -> None:
        """Normalizes states and scales returns-to-go in place; the states of padded steps are no longer zero."""
        states, returns_to_go = arrays.states, arrays.returns_to_go
        limit = self._clip.take(tasks, axis=0) if self._one_clip is None else self._one_clip
        states -= self._mean.take(tasks, axis=0)
        states /= self._std.take(tasks, axis=0)
        states.clip(-limit, limit, out=states)
        returns_to_go /= self._return_scale.take(tasks, axis=0)


def _check(data: TaskDatasets, config: ModelConfig, batch_size: int, tasks_per_batch: int | None) -> None:
    if batch_size < 1 or not 1 <= (batch_size if tasks_per_batch is None else tasks_per_batch) <= batch_size:
        raise ConfigError(
            f"need batch_size >= 1 and tasks_per_batch None or 1 … batch_size; got {batch_size}, {tasks_per_batch}"
        )
    limits = f"the model takes at most {config.state_dim} + {config.act_dim} and {config.max_timesteps} steps"
    for task, packed in zip(data.tasks, data.packed, strict=True):
        longest = int(packed.lengths.max())
        if task.obs_dim > config.state_dim or task.act_dim > config.act_dim or longest > config.max_timesteps:
            raise ConfigError(
                f"task {task.name!r} is {task.obs_dim} + {task.act_dim} wide, its longest episode {longest} steps; {limits}"
            )
