"""A few episodes as a dataset in memory: the same numbers as from a dataset on disk, and named errors for what is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.config import DataConfig, ModelConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.demonstrations import demonstrations, shown
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, DatasetError

MakeEpisode = Callable[..., Episode]
TASK = tasks.get("cheetah-vel-3")


def numbers(data: TaskDatasets, config: DataConfig | None = None) -> list[Any]:
    statistics, prompts = shown(data, config or data.config, 5)
    fields = [*dataclasses.astuple(statistics[TASK.name])]
    return fields + [array for prompt in prompts[TASK.name] for array in dataclasses.astuple(prompt)]


def test_episodes_in_memory_say_what_the_same_on_disk_say(tmp_path: Path, make_episode: MakeEpisode) -> None:
    episodes = [make_episode(TASK, length, seed) for seed, length in enumerate((7, 9, 4))]
    write_dataset(tmp_path, TASK, "mine", episodes, metadata={})
    stored = TaskDatasets.open(tmp_path, TASK.name)
    held = demonstrations(TASK, iter(episodes))
    for ours, theirs in zip(numbers(held), numbers(stored), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        shown(stored, stored.config, 5)[0][TASK.name].mean, compute_statistics(stored)[TASK.name].mean
    )
    assert len(make_prompts(held, 5)[TASK.name]) == held.config.n_prompts == 2
    assert held.train_episodes(0) == stored.train_episodes(0)


def test_one_episode_is_enough_to_show_a_task_and_too_few_to_train_on(tmp_path: Path, make_episode: MakeEpisode) -> None:
    episode = make_episode(TASK, 6)
    write_dataset(tmp_path, TASK, "mine", [episode], metadata={})
    with pytest.raises(DatasetError, match="training needs at least 3"):
        TaskDatasets.open(tmp_path, TASK.name)
    for data in (demonstrations(TASK, [episode]), TaskDatasets.open(tmp_path, TASK.name, few=True).subset([TASK])):
        (prompt,) = make_prompts(data, 5)[TASK.name]
        np.testing.assert_array_equal(prompt.states, episode.observations[1:6])
        statistics, prompts = compute_statistics(data), make_prompts(data, 5)
        with pytest.raises(DatasetError, match="'cheetah-vel-3': all its episodes are prompts, 1; none is left"):
            BatchSampler(
                data, statistics, prompts, ModelConfig.preset("tiny"), batch_size=1, tasks_per_batch=1, seed=0, stage="router"
            )


def test_published_target_returns_are_asked_for_only_where_there_are_any(make_episode: MakeEpisode) -> None:
    own = dataclasses.replace(TASK, name="own", target_return=None)
    published = DataConfig.preset("paper")
    episode = make_episode(TASK, 6)
    assert shown(demonstrations(TASK, [episode]), published, 5)[0][TASK.name].target_return == TASK.target_return
    assert shown(demonstrations(own, [episode]), published, 5)[0]["own"].target_return == episode.episode_return


@pytest.mark.parametrize(
    ("episodes", "error", "message"),
    [
        ([], DatasetError, "no demonstrations; one is enough"),
        (3, ConfigError, "are a list of Episode, or a TaskDatasets; got 3"),
        ([3], ConfigError, "got 3 in it"),
        ({"observations": {"clip": (0, 3)}}, DatasetError, r"demonstration 0: observations is \(7, 3\)"),
        ({"actions": {"scale": 5.0}}, DatasetError, r"demonstration 0, step 0: actions leave \[-1, 1\]"),
        ({"rewards": {"scale": float("nan")}}, DatasetError, "rewards holds NaN"),
    ],
)
def test_what_is_no_demonstration_is_named(
    make_episode: MakeEpisode, episodes: Any, error: type[Exception], message: str
) -> None:
    if isinstance(episodes, dict):
        ((field, change),) = episodes.items()
        array = getattr(make_episode(TASK, 6, reward=1.0), field)
        changed = array[:, slice(*change["clip"])] if "clip" in change else np.full_like(array, change["scale"])
        episodes = [dataclasses.replace(make_episode(TASK, 6), **{field: changed})]
    with pytest.raises(error, match=message):
        demonstrations(TASK, episodes)
