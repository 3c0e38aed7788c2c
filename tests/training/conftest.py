"""Three small tasks with made-up episodes, packed in memory, and banks of them; for the tests of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.pack import PackedTask
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets

TASKS = ("cheetah-vel-3", "cheetah-vel-30", "pendulum-swingup", "reacher-easy", "ant-dir-7", "reach")
MODEL = ModelConfig(16, 2, 2, n_experts=3, context_length=4, prompt_length=2, max_timesteps=60)


def made_up_task(name: str, seed: int, episodes: int = 6) -> PackedTask:
    """Episodes of a random linear policy on noise: learnable, and different for every task."""
    task, rng = tasks.get(name), np.random.default_rng(seed)
    lengths = rng.integers(8, 40, episodes)
    n = int(lengths.sum())
    states = rng.normal(size=(n, task.obs_dim)).astype(np.float32)
    actions = np.tanh(states @ rng.normal(size=(task.obs_dim, task.act_dim)) / task.obs_dim**0.5).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    to_go = np.concatenate([np.arange(length, 0, -1, np.float32) for length in lengths])
    return PackedTask(
        task=task,
        stored=np.concatenate([states, actions, to_go[:, None]], axis=1),
        offsets=offsets.astype(np.int64),
        returns=lengths.astype(np.float64),
        success=None,
        stop_after_success=0,
        obs_mean=states.mean(0, dtype=np.float64),
        obs_std=states.std(0, dtype=np.float64),
    )


def made_up_data(names: tuple[str, ...] = TASKS, seed: int = 0) -> TaskDatasets:
    packed = tuple(made_up_task(name, seed + i) for i, name in enumerate(names))
    return TaskDatasets(tuple(p.task for p in packed), packed)


def new_bank(path: Path, data: TaskDatasets, config: ModelConfig = MODEL) -> ExpertBank:
    prompts = make_prompts(data, config.prompt_length)
    return ExpertBank.create(path, config, data.tasks, compute_statistics(data), prompts, data.config)


@pytest.fixture
def data() -> TaskDatasets:
    return made_up_data()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskDatasets, ExpertBank]:
    """The same data and a new bank of them, for all tests of a module."""
    data = made_up_data()
    return data, new_bank(tmp_path_factory.mktemp("shared") / "bank", data)


@pytest.fixture
def other_data() -> TaskDatasets:
    """The same tasks, other episodes."""
    return made_up_data(seed=100)


@pytest.fixture
def make_bank(tmp_path: Path, data: TaskDatasets) -> Callable[..., ExpertBank]:
    """A function that makes a new bank; keywords change its ModelConfig."""

    def make(name: str = "bank", **changes: object) -> ExpertBank:
        return new_bank(tmp_path / name, data, dataclasses.replace(MODEL, **changes))  # type: ignore[arg-type]

    return make
