"""Which dataset a task gets, and which of its episodes become prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from m3dt_agent import tasks
from m3dt_agent.config import DataConfig
from m3dt_agent.data.episodes import Episode, dataset_path, write_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, DatasetError, UnknownTaskError

MakeEpisode = Callable[..., Episode]
MakeDataset = Callable[..., Path]


def test_open_and_subset(tmp_path: Path, make_dataset: MakeDataset) -> None:
    names = ("walker-run", "reach", "ant-dir-0")
    for i, name in enumerate(names):
        make_dataset(tmp_path, tasks.get(name), (3, 4, 5 + i))
    data = TaskDatasets.open(tmp_path, names)
    assert [task.name for task in data.tasks] == list(names)
    assert [packed.task for packed in data.packed] == list(data.tasks)
    assert data.config == DataConfig()
    part = data.subset(["ant-dir-0", tasks.get("walker-run")])
    assert [task.name for task in part.tasks] == ["ant-dir-0", "walker-run"]
    assert part.packed == (data.packed[2], data.packed[0])
    assert TaskDatasets.open(str(tmp_path), "reach").tasks == (tasks.get("reach"),)
    with pytest.raises(UnknownTaskError, match="cheetah-run"):
        data.subset(["cheetah-run"])
    with pytest.raises(UnknownTaskError, match="reach"):
        TaskDatasets.open(tmp_path, ["reech"])
    with pytest.raises(ConfigError, match="at least one"):
        TaskDatasets.open(tmp_path, [])


def test_missing_dataset_names_what_exists(tmp_path: Path, make_dataset: MakeDataset) -> None:
    with pytest.raises(DatasetError, match=r"no dataset of task 'reach' under .*; tasks with datasets there: none"):
        TaskDatasets.open(tmp_path / "nowhere", ["reach"])
    make_dataset(tmp_path, tasks.get("push"), (3, 3, 3))
    make_dataset(tmp_path, tasks.get("walker-run"), (3, 3, 3))
    with pytest.raises(DatasetError, match=r"no dataset of task 'reach' under .*: push, walker-run$"):
        TaskDatasets.open(tmp_path, ["push", "reach"])
    assert not (tmp_path / ".packed").exists()  # nothing is packed before everything is found


def test_several_sources_need_a_choice(tmp_path: Path, make_dataset: MakeDataset) -> None:
    task = tasks.get("push")
    make_dataset(tmp_path, task, (3, 3, 3), source="expert")
    make_dataset(tmp_path, task, (4, 4, 4), source="novice")
    with pytest.raises(DatasetError, match=r"'push' has several datasets under .*: expert, novice; choose one"):
        TaskDatasets.open(tmp_path, [task])
    assert TaskDatasets.open(tmp_path, [task], source="novice").packed[0].lengths.tolist() == [4, 4, 4]
    with pytest.raises(DatasetError, match=r"no dataset from source 'medium' under .*; it has: expert, novice"):
        TaskDatasets.open(tmp_path, [task], source="medium")


def test_half_written_dataset_is_an_error(tmp_path: Path) -> None:
    dataset_path(tmp_path, "m3dt/push/expert-v0").joinpath("data").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"m3dt/push/expert-v0 is not a whole dataset: data/metadata.json is missing"):
        TaskDatasets.open(tmp_path, ["push"])


@pytest.mark.parametrize("n_prompts", [1, 2, 3])
def test_too_few_episodes(tmp_path: Path, make_dataset: MakeDataset, n_prompts: int) -> None:
    make_dataset(tmp_path, tasks.get("push"), (3,) * n_prompts)
    with pytest.raises(DatasetError, match=rf"has {n_prompts} episode\(s\); .* at least {n_prompts + 1}"):
        TaskDatasets.open(tmp_path, ["push"], config=DataConfig(n_prompts=n_prompts))


def write(root: Path, make_episode: MakeEpisode, rewards: Sequence[float], n_prompts: int) -> TaskDatasets:
    task = tasks.get("walker-run")
    write_dataset(root, task, "expert", [make_episode(task, 4, i, reward=r) for i, r in enumerate(rewards)], metadata={})
    return TaskDatasets.open(root, [task], config=DataConfig(n_prompts=n_prompts))


def test_prompts_are_the_best_returns(tmp_path: Path, make_episode: MakeEpisode) -> None:
    data = write(tmp_path, make_episode, [1.0, 5.0, -2.0, 5.0, 9.0, 4.0], n_prompts=3)
    assert data.prompt_episodes(0) == [4, 1, 3]  # ties: the earlier episode
    assert data.train_episodes(0) == [0, 2, 5]


def test_prompts_that_the_dataset_names(tmp_path: Path, make_episode: MakeEpisode) -> None:
    task = tasks.get("walker-run")
    episodes = [make_episode(task, 4, i, reward=reward) for i, reward in enumerate((9.0, 1.0, 3.0, 2.0, 8.0))]
    write_dataset(tmp_path, task, "published", episodes, metadata={"m3dt_prompt_episodes": "[1, 2, 3]"})
    for n_prompts, expected in ((1, [2]), (2, [2, 3]), (4, [2, 3, 1])):
        data = TaskDatasets.open(tmp_path, [task], config=DataConfig(n_prompts=n_prompts))
        assert data.prompt_episodes(0) == expected  # the best of those named, not of all
        assert data.train_episodes(0) == [0, 4]  # none of those named, used as a prompt or not
    write_dataset(tmp_path, task, "all", episodes[:2], metadata={"m3dt_prompt_episodes": "[1, 0]"})
    with pytest.raises(DatasetError, match=r"has 2 episode\(s\); 2 are kept as prompts, so training needs at least 3"):
        TaskDatasets.open(tmp_path, [task], source="all")


def test_prompts_of_data_cut_at_success_are_the_fastest(tmp_path: Path, make_episode: MakeEpisode) -> None:
    task = tasks.get("push")
    lengths, success = (40, 25, 500, 30, 25, 500), (True, True, False, True, True, False)
    rewards = (1.0, 1.0, 0.5, 1.0, 2.0, 0.9)
    episodes = [
        make_episode(task, length, i, success_at=length - 3 if won else None, reward=reward)
        for i, (length, won, reward) in enumerate(zip(lengths, success, rewards, strict=True))
    ]
    write_dataset(tmp_path, task, "quick", episodes, metadata={"stop_after_success": 2})
    order = [4, 1, 3, 0, 5]  # equally fast: the better return; failures last, by return
    for n_prompts in range(1, 6):
        data = TaskDatasets.open(tmp_path, [task], config=DataConfig(n_prompts=n_prompts))
        assert data.prompt_episodes(0) == order[:n_prompts]

    write_dataset(tmp_path, task, "full", episodes, metadata={})
    unmarked = TaskDatasets.open(tmp_path, [task], source="full")
    assert unmarked.prompt_episodes(0) == [5, 2]  # highest return, though both failed


def test_marked_data_without_success_is_refused(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(tmp_path, tasks.get("walker-run"), (3, 3, 3), stop_after_success=2)
    with pytest.raises(DatasetError, match="does not say which episodes succeeded"):
        TaskDatasets.open(tmp_path, ["walker-run"])
