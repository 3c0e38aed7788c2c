"""Small datasets and a bank, some with names and texts of strangers that would run if they were not escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import HOSTILE, HOSTILE_NAME
from small_banks import new_bank, parts, random_model

from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.tasks import TaskSpec, get


def episode(task: TaskSpec, length: int, reward: float, seed: int | None = None) -> Episode:
    rng = np.random.default_rng(length)
    last = np.arange(length) == length - 1
    actions = rng.uniform(-0.9, 0.9, (length, task.act_dim))
    actions[: length // 2, 0] = 1.0
    return Episode(
        observations=rng.normal(3.0, 2.0, (length + 1, task.obs_dim)),
        actions=actions,
        rewards=np.full(length, reward),
        terminations=np.zeros(length, bool),
        truncations=last,
        success=(np.arange(length) >= length - 2) & (reward > 0) if task.has_success else None,
        seed=seed,
    )


def dataset(root: Path, name: str, rewards: Sequence[float], source: str = "mixed", **metadata: Any) -> Path:
    """Episodes of 10, 11, … steps with these rewards at each step."""
    task = get(name)
    made = (episode(task, 10 + i, reward, i) for i, reward in enumerate(rewards))
    return write_dataset(root, task, source, made, metadata=metadata)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, and a third that nobody knows and whose names and metadata are hostile."""
    root = tmp_path_factory.mktemp("view") / "root"
    policy = json.dumps({"random": 0.25, "expert": 0.75})
    dataset(root, "cheetah-vel-25", (-1.0, -3.0, -2.0), m3dt_policy=policy)
    dataset(root, "reach", (1.0, -1.0, 2.0), source="expert", m3dt_policy=json.dumps({"expert": 1.0}))
    hostile = dataset(root / "other", "cheetah-vel-25", (1.0, 2.0), m3dt_policy=json.dumps({HOSTILE: 1.0}))
    moved = root / "m3dt" / HOSTILE_NAME / f"{HOSTILE_NAME}-v0"
    moved.parent.mkdir()
    hostile.rename(moved)
    return root


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    """A complete bank of random weights, with groups, whose folder has a hostile name."""
    bank = new_bank(tmp_path_factory.mktemp("view") / HOSTILE_NAME)
    bank.commit(parts(random_model()), groups={"walker-run": 1, "reach": 0})
    return bank
