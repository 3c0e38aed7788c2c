"""Draws batches of windows and prompts from packed steps. A batch depends only on (seed, stage, expert, step).

A window is T = `context_length` consecutive steps. Its first step s is drawn uniformly from all training steps of the task, so
an episode of L steps is drawn in proportion to its length. If the episode ends within the window, the window is left-padded:

    s ≤ L - T   [ s  s+1  …  s+T-1 ]        timesteps are the episode's own, returns-to-go run to the episode's end
    s > L - T   [ ·  ·  s  …  L-1 ]         · is padding: zeros, mask False

Windows at the start of an episode need no padding, although `act` sees fewer than T steps there (at step t it sees the last T
steps, or t + 1 if those are fewer). Attention is causal and padding changes no output. So the prediction at position j of the
window that starts at 0 is exactly the one that `act` makes at t = j, and the prediction at the last position of the window that
starts at s is the one at t = s + T - 1. Every context that `act` can meet is therefore drawn, each with the same probability
1/L. Windows at the end of an episode only add shorter contexts.

Sampling reads one contiguous slice of a pack for each window. Everything else is done once per batch, or once per pair of
widths. For a batch of 16 windows the number of NumPy calls decides the time: there `take` is three times as fast as indexing
with an array.
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
from ..config.training import Labels
from ..errors import ConfigError
from ..tasks import lookup
from .prompts import Prompt, prompt_window
from .stats import TaskStatistics
from .task_datasets import TaskDatasets
from .windows import Batch, Window, WindowArrays, empty_window

__all__ = ["Batch", "BatchSampler", "Window", "derive_seed"]


def derive_seed(seed: int, stage: str, expert: int, step: int, purpose: str = "") -> int:
    """A 63-bit seed for one purpose in one training step; it is the same in every process and on every machine."""
    text = json.dumps([int(seed), stage, int(expert), int(step), purpose])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class BatchSampler:
    """Draws the batches of one training run, or of one expert in it.

    Tasks are drawn first, uniformly, and none is repeated before all have been drawn. Each drawn task gets an equal share of
    the windows, next to each other in the batch. The prompt of a window is drawn uniformly from the prompts of its task.

    Args:
        data: the tasks and their packed steps.
        statistics: by task name.
        prompts: by task name.
        config: the model's widths and lengths.
        batch_size: windows per batch.
        tasks_per_batch: how many tasks are drawn for a batch; None: one per window.
        seed, stage, expert: whose batches these are.
        domain_weights: domain → n: a task of that domain is drawn n times as often as one of a domain that is not named.
        labels: "demonstrator" makes labels, where packs have them, what the model is to predict; "executed" ignores them.
        truncate_history: probability that the steps of a window before a random one of it become padding.

    Raises:
        UnknownTaskError: a task has no statistics or no prompts.
        ConfigError: a batch would have no windows, or the data do not fit the model's widths or its longest episode.
        ShapeError: the prompts do not fit the model.
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
        truncate_history: float = 0.0,
        labels: Labels = "demonstrator",
    ) -> None:
        _check(data, config, batch_size, tasks_per_batch)
        self.data, self.config, self.batch_size = data, config, batch_size
        self.tasks_per_batch = batch_size if tasks_per_batch is None else tasks_per_batch
        self._run = (seed, stage, expert)
        self._truncate_history = truncate_history
        self._labelled = labels == "demonstrator" and any(packed.labelled for packed in data.packed)
        self._urn = np.repeat(np.arange(len(data.tasks)), [(domain_weights or {}).get(task.domain, 1) for task in data.tasks])
        self._turns = np.arange(batch_size) * self.tasks_per_batch // batch_size  # window → number of its task among the drawn
        self._widths = [
            (task.obs_dim, task.act_dim, packed.labelled) for task, packed in zip(data.tasks, data.packed, strict=True)
        ]
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
        """The batch of training step `step`: B = batch_size windows of context_length steps, prompts of prompt_length steps."""
        rng = np.random.default_rng(derive_seed(*self._run, step, "batch"))
        wanted, size = self.tasks_per_batch, len(self._urn)
        drawn = np.concatenate([self._urn[rng.permutation(size)] for _ in range(-(-wanted // size))])[:wanted]
        return self._draw(drawn.take(self._turns), rng)

    def sample_task(self, task_index: int, step: int) -> Batch:
        """A batch of windows of one task alone, to compute the task's gradient; independent of `sample` and of other tasks.

        Raises:
            ConfigError: `task_index` is not the index of a task.
        """
        if not 0 <= task_index < len(self.data.tasks):
            raise ConfigError(f"task_index must be in [0, {len(self.data.tasks)}); got {task_index}")
        name = self.data.tasks[task_index].name
        rng = np.random.default_rng(derive_seed(*self._run, step, f"task {name}"))
        return self._draw(np.full(self.batch_size, task_index), rng)

    def _draw(self, tasks: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Draws a batch with a window of each of the given tasks, (B,) int64."""
        T = self.config.context_length
        first, start, real = self._index.draw(tasks, T, rng)
        prompts = self._first_prompt.take(tasks) + rng.integers(self._prompt_counts.take(tasks))
        arrays = empty_window(len(tasks), T, self.config)
        labels = np.zeros_like(arrays.actions) if self._labelled else None
        self._copy_steps(arrays, labels, tasks.tolist(), first.tolist(), real.tolist())
        self._scaling.apply(arrays, tasks)
        np.add((start + real - T)[:, None], self._positions, out=arrays.timesteps)
        action_mask = self._real_actions.take(tasks, axis=0)
        _clear_padding(arrays, action_mask, (T - real + self._hidden(real, rng)).tolist())
        return Batch(
            tasks=torch.from_numpy(tasks),
            window=arrays.to_window(),
            prompt=self._prompts.take(prompts).to_window(),
            action_mask=torch.from_numpy(action_mask),
            labels=None if labels is None else torch.from_numpy(labels),
            prompt_ids=torch.from_numpy(prompts),
        )

    def _hidden(self, real: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """How many of the first real steps of each window are hidden, (B,); the last one never is."""
        if self._truncate_history == 0.0:
            return np.zeros_like(real)
        chosen = rng.random(len(real)) < self._truncate_history
        return np.where(chosen, rng.integers(real), 0)

    def _copy_steps(
        self, arrays: WindowArrays, labels: NDArray[np.float32] | None, tasks: list[int], first: list[int], real: list[int]
    ) -> None:
        """Copies steps first[b] … first[b] + real[b] - 1 of the task's pack, raw, to the right end of window b.

        labels: (B, T, act_dim), gets those of the steps; their actions where a pack has none. None: they are left out.
        """
        T = self.config.context_length
        groups: defaultdict[tuple[int, int, bool], tuple[list[int], list[bytes]]] = defaultdict(lambda: ([], []))
        for b, (task, begin, count) in enumerate(zip(tasks, first, real, strict=True)):
            windows, runs = groups[self._widths[task]]  # tasks of the same widths are copied together
            windows.append(b)
            runs.append(self.data.packed[task].read(begin, count, T))
        for (obs_dim, act_dim, _), (windows, runs) in groups.items():
            raw = np.frombuffer(b"".join(runs), np.float32).reshape(len(windows), T, -1)
            to = np.array(windows) if len(groups) > 1 else slice(None)
            arrays.states[to, :, :obs_dim] = raw[:, :, :obs_dim]
            arrays.actions[to, :, :act_dim] = raw[:, :, obs_dim : obs_dim + act_dim]
            if labels is not None:
                labels[to, :, :act_dim] = raw[:, :, -1 - act_dim : -1]
            arrays.returns_to_go[to] = raw[:, :, -1:]


def _clear_padding(arrays: WindowArrays, action_mask: NDArray[np.bool_], padding: list[int]) -> None:
    """Sets the masks, and zeros in the first padding[b] steps of window b."""
    arrays.mask[:] = True
    for b, padded in enumerate(padding):  # few windows are padded unless episodes are short
        if padded:
            arrays.states[b, :padded] = 0.0
            arrays.actions[b, :padded] = 0.0
            arrays.returns_to_go[b, :padded] = 0.0
            arrays.timesteps[b, :padded] = 0
            arrays.mask[b, :padded] = False
            action_mask[b, :padded] = False


class _EpisodeIndex:
    """Where the training episodes of all tasks lie. Their steps are put on one line, task by task and episode by episode."""

    def __init__(self, data: TaskDatasets) -> None:
        kept = [np.array(data.train_episodes(i)) for i in range(len(data.tasks))]
        packs = list(zip(data.packed, kept, strict=True))
        lengths = np.concatenate([packed.lengths[episodes] for packed, episodes in packs])
        self._ends = np.cumsum(lengths)  # on the line
        self._begins = self._ends - lengths
        self._in_pack = np.concatenate([packed.offsets[episodes] for packed, episodes in packs])  # first steps
        self._task_totals = np.array([packed.lengths[episodes].sum() for packed, episodes in packs])
        self._task_begins = np.cumsum(self._task_totals) - self._task_totals

    def draw(
        self, tasks: NDArray[np.int64], length: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Per window (B,): its first step in the pack, its first timestep, and how many of its `length` steps are real."""
        anchor = self._task_begins.take(tasks) + rng.integers(self._task_totals.take(tasks))
        episode = self._ends.searchsorted(anchor, side="right")
        start = anchor - self._begins.take(episode)
        return self._in_pack.take(episode) + start, start, np.minimum(length, self._ends.take(episode) - anchor)


class _Scaling:
    """The statistics of all tasks, stacked and padded to the model's widths, so that a mixed batch is scaled at once."""

    def __init__(self, statistics: Sequence[TaskStatistics], data: TaskDatasets, config: ModelConfig) -> None:
        n_tasks = len(statistics)
        # as long as a window, because broadcasting over its steps would take twice as long
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
        self._one_clip = self._clip[0, 0, 0] if len(set(clips)) == 1 else None  # clipping to one number is five times as fast
        self._return_scale = np.array([s.return_scale for s in statistics], np.float32)[:, None, None]

    def apply(self, arrays: WindowArrays, tasks: NDArray[np.int64]) -> None:
        """Normalizes states and scales returns-to-go in place. The states of padded steps are then no longer zero."""
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
