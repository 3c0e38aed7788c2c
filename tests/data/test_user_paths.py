"""`~` stands for the home folder in every function of the data that takes a path, and makes no folder of that name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from published_writers import write_prompt_dt

from m3dt_agent import tasks
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.behavior.training import BehaviorTrainingConfig, train_behavior
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.episodes import dataset_path, find_sources, read_episodes, validate_dataset, write_dataset
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, M3DTError
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.convert_weights import bank_from_published, read_published

TASK = tasks.get("cheetah-vel-3")
MakeDataset = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_dataset: MakeDataset) -> Path:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    make_dataset(home / "root", TASK, (3, 4, 5))
    write_prompt_dt(home / "in" / "cheetah_vel-3-expert.pkl", TASK, (3, 4, 5))
    return home


def test_every_function(home: Path, tmp_path: Path) -> None:
    dataset = "~/root/m3dt/cheetah-vel-3/expert-v0"
    assert validate_dataset(dataset, TASK) == []
    assert len(list(read_episodes(dataset))) == 3
    assert find_sources("~/root", TASK) == {"expert": home / dataset[2:]}
    assert dataset_path("~/root", "m3dt/x/y-v0") == home / "root/m3dt/x/y-v0"
    assert pack_dataset(dataset, TASK, cache="~/packs").returns.shape == (3,)
    data = TaskDatasets.open("~/root", [TASK], cache="~/packs")
    assert write_dataset("~/written", TASK, "own", read_episodes(dataset), metadata={}).is_relative_to(home / "written")
    (made,) = import_datasets("prompt-dt", "~/in", "~/imported")
    assert made.path.is_relative_to(home / "imported")
    (collected,) = collect([TASK], "~/collected", CollectConfig({"zero": 1}, episodes=1), workers=0)
    assert collected.path.is_relative_to(home / "collected")
    with pytest.raises(ConfigError, match=f"{home}/weights"):
        behavior_policy(TASK, weights="~/weights")
    with pytest.raises(M3DTError, match=f"{home}/weights"):
        read_published("~/weights")
    with pytest.raises(M3DTError, match=f"{home}/weights"):
        bank_from_published("~/weights", "~/bank", data)
    (home / "run" / "checkpoint-000000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{home}/run/checkpoint-000000001/progress.json"):
        train_behavior(TASK, "~/run", BehaviorTrainingConfig(steps=1))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_nobodys_home(home: Path) -> None:
    with pytest.raises(M3DTError, match="~nobody-at-all/root cannot be used"):
        TaskDatasets.open("~nobody-at-all/root", [TASK])
