"""A few demonstrations in memory, and what they say of a task: its statistics, prompts and target return.

episodes ─► demonstrations ─► TaskDatasets, as if they had been written and packed ─► shown ─► statistics, prompts
dataset  ─► TaskDatasets.open(…, few=True) ──────────────────────────────────────────┘
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from ..config import DataConfig
from ..errors import ConfigError, DatasetError
from ..tasks import TaskSpec
from .episodes import Episode, check_episode
from .pack import PackedTask, packed_steps
from .pack_index import IndexBuilder
from .prompts import Prompt, make_prompts
from .stats import TaskStatistics, compute_statistics
from .task_datasets import TaskDatasets


def demonstrations(task: TaskSpec, episodes: Iterable[Episode], config: DataConfig | None = None) -> TaskDatasets:
    """A dataset of one task in memory, of at least one episode. config: as `TaskDatasets` has it; None: the defaults.

    Raises:
        ConfigError: `episodes` is no collection of `Episode`.
        DatasetError: there is none, or one does not fit the task; the message names episode and step.
    """
    if not isinstance(episodes, Iterable):
        raise ConfigError(f"task {task.name!r}: demonstrations are a list of Episode, or a TaskDatasets; got {episodes!r:.100}")
    index, steps = IndexBuilder(task.obs_dim), []
    for i, episode in enumerate(episodes):
        if not isinstance(episode, Episode):
            raise ConfigError(f"task {task.name!r}: demonstrations are a list of Episode; got {episode!r:.100} in it")
        check_episode(episode, task, f"task {task.name!r}, demonstration {i}")
        index.add(episode)
        steps.append(packed_steps(episode))
    if not steps:
        raise DatasetError(f"task {task.name!r}: there are no demonstrations; one is enough")
    packed = PackedTask(
        task=task,
        stored=np.concatenate(steps),
        offsets=np.asarray(index.offsets, np.int64),
        returns=np.asarray(index.returns, np.float64),
        success=None if None in index.success else np.asarray(index.success, np.bool_),
        stop_after_success=0,
        obs_mean=index.mean,
        obs_std=np.sqrt(index.squares / index.offsets[-1]),
    )
    return TaskDatasets((task,), (packed,), config or DataConfig(), few=True)


def shown(
    data: TaskDatasets, config: DataConfig, prompt_length: int
) -> tuple[dict[str, TaskStatistics], dict[str, tuple[Prompt, ...]]]:
    """The statistics and the prompts of the tasks of `data`, by name, made as `config` says.

    If `config` asks for published target returns and a task has none, all are those of the data.
    """
    if any(task.target_return is None for task in data.tasks):
        config = dataclasses.replace(config, target_return="data")
    again = dataclasses.replace(data, config=config, reopen=None)
    return compute_statistics(again), make_prompts(again, prompt_length)
