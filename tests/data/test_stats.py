"""Observation statistics, their floors and clips, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m3dt_agent import tasks
from m3dt_agent.config import DataConfig
from m3dt_agent.data.episodes import Episode, read_episodes, write_dataset
from m3dt_agent.data.stats import TaskStatistics, compute_statistics, statistics_from_tensors, statistics_to_tensors
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, InvalidValueError

MakeEpisode = Callable[..., Episode]
TASK = tasks.get("push")


@pytest.fixture
def root(tmp_path: Path, make_episode: MakeEpisode) -> Path:
    """Dimension 0 is constant, 1 nearly so (deviation about 5e-4), 2 has a deviation of about 5e-7."""

    def episodes() -> list[Episode]:
        made = [make_episode(TASK, length, i, success_at=length - 1) for i, length in enumerate((30, 20, 25, 40))]
        for episode in made:
            noise = np.random.default_rng(episode.length).normal(size=episode.length + 1)
            episode.observations[:, 0] = 0.7
            episode.observations[:, 1] = 5e-4 * noise
            episode.observations[:, 2] = 5e-7 * noise
        return made

    write_dataset(tmp_path, TASK, "expert", episodes(), metadata={"stop_after_success": 1})
    return tmp_path


def statistics(root: Path, config: DataConfig) -> TaskStatistics:
    return compute_statistics(TaskDatasets.open(root, [TASK], config=config))["push"]


def test_default(root: Path) -> None:
    found = statistics(root, DataConfig())
    states = np.concatenate([e.observations[:-1] for e in read_episodes(root / "m3dt/push/expert-v0")]).astype(np.float64)
    np.testing.assert_allclose(found.mean, states.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std[3:], states.std(axis=0)[3:], rtol=1e-6)
    assert found.std[:3].tolist() == [1.0, 1.0, 1.0]
    assert found.mean.dtype == found.std.dtype == np.float32
    assert found.return_scale == TASK.return_scale
    returns = [e.episode_return for e in read_episodes(root / "m3dt/push/expert-v0")]
    assert found.target_return == pytest.approx((returns[1] + returns[2]) / 2)  # the two fastest


def test_paper(root: Path) -> None:
    found = statistics(root, DataConfig.preset("paper"))
    assert found.std[0] == found.std[2] == np.float32(1e-6)
    assert found.std[1] == pytest.approx(5e-4, rel=0.3)
    assert found.state_clip is None
    assert found.target_return == TASK.target_return


def test_normalize() -> None:
    task = TaskStatistics(np.array([1.0, 0.0], np.float32), np.array([2.0, 1e-3], np.float32), 10.0, 5.0, state_clip=3.0)
    states = np.array([[[3.0, 0.001], [-9.0, 1.0]]], np.float32)
    np.testing.assert_allclose(task.normalize(states), [[[1.0, 1.0], [-3.0, 3.0]]], rtol=1e-6)
    assert task.normalize(states).dtype == np.float32
    np.testing.assert_array_equal(states, np.array([[[3.0, 0.001], [-9.0, 1.0]]], np.float32))  # untouched
    free = TaskStatistics(task.mean, task.std, 10.0, 5.0, state_clip=None)
    np.testing.assert_allclose(free.normalize(states), [[[1.0, 1.0], [-5.0, 1000.0]]], rtol=1e-6)


@pytest.mark.parametrize("clip", [10.0, None])
def test_stored_and_read(root: Path, tmp_path: Path, clip: float | None) -> None:
    before = compute_statistics(TaskDatasets.open(root, [TASK], config=DataConfig(state_clip=clip)))
    before["ant-dir-3"] = TaskStatistics(np.zeros(27, np.float32), np.ones(27, np.float32), 500.0, 0.1, clip)
    save_file(statistics_to_tensors(before), tmp_path / "statistics.safetensors")
    after = statistics_from_tensors(load_file(tmp_path / "statistics.safetensors"))
    assert set(after) == {"push", "ant-dir-3"}
    for task, expected in before.items():
        np.testing.assert_array_equal(after[task].mean, expected.mean)
        np.testing.assert_array_equal(after[task].std, expected.std)
        for field in ("return_scale", "target_return", "state_clip"):
            assert getattr(after[task], field) == getattr(expected, field)


def test_missing_and_foreign_tensors_are_named() -> None:
    tensors = statistics_to_tensors({"push": TaskStatistics(np.zeros(39, np.float32), np.ones(39, np.float32), 1.0, 1.0, None)})
    with pytest.raises(BankError, match=r"missing tensors \['push/std'\]"):
        statistics_from_tensors({key: value for key, value in tensors.items() if key != "push/std"})
    with pytest.raises(BankError, match=r"unknown tensors \['push/weight'\]"):
        statistics_from_tensors(tensors | {"push/weight": tensors["push/std"]})


@pytest.mark.parametrize(
    "change",
    [
        {"std": np.zeros(2, np.float32)},
        {"std": np.ones(3, np.float32)},
        {"mean": np.array([np.nan, 0], np.float32)},
        {"return_scale": 0.0},
        {"target_return": math.inf},
        {"state_clip": 0.0},
        {"state_clip": math.nan},
        {"mean": np.array([1e11, 0], np.float32)},  # a normalized state would leave float32
        {"std": np.array([1e-20, 1], np.float32)},
        {"return_scale": 1e-300},  # and so would a return-to-go
        {"target_return": -1e38},
    ],
)
def test_impossible_statistics(change: dict[str, object]) -> None:
    good = {
        "mean": np.zeros(2, np.float32),
        "std": np.ones(2, np.float32),
        "return_scale": 1.0,
        "target_return": 0.0,
        "state_clip": None,
    }
    TaskStatistics(**good)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError):
        TaskStatistics(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mean", torch.zeros(3, 13)),
        ("mean", torch.zeros(39, dtype=torch.int64)),
        ("std", torch.tensor(1.0)),
        ("return_scale", torch.ones(2)),
        ("target_return", torch.zeros(0)),
        ("state_clip", torch.zeros(1, dtype=torch.complex64)),
    ],
)
def test_tensors_of_another_form_are_named(name: str, tensor: torch.Tensor) -> None:
    tensors = statistics_to_tensors({"push": TaskStatistics(np.zeros(39, np.float32), np.ones(39, np.float32), 1.0, 1.0, None)})
    with pytest.raises(BankError, match=f"push/{name} is {tensor.dtype}"):
        statistics_from_tensors(tensors | {f"push/{name}": tensor})
