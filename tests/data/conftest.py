"""Synthetic episodes with the widths of real tasks, and datasets of them, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.tasks import TaskSpec

MakeEpisode = Callable[..., Episode]
MakeDataset = Callable[..., Path]


def _episode(
    task: TaskSpec, length: int, seed: int = 0, *, success_at: int | None = None, reward: float | None = None
) -> Episode:
    rng = np.random.default_rng([seed, length])
    last = np.arange(length) == length - 1
    stopped = success_at is not None and length < task.max_episode_steps
    return Episode(
        observations=rng.normal(3.0, 2.0, (length + 1, task.obs_dim)),
        actions=rng.uniform(-1.0, 1.0, (length, task.act_dim)),
        rewards=rng.normal(0.0, 5.0, length) if reward is None else np.full(length, reward),
        terminations=last & stopped,
        truncations=last & (not stopped),
        success=np.arange(length) >= (length if success_at is None else success_at) if task.domain == "metaworld" else None,
        seed=seed,
    )


@pytest.fixture(scope="session")
def make_episode() -> MakeEpisode:
    """`make_episode(task, length, seed, success_at=…, reward=…)`."""
    return _episode


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """`make_dataset(root, task, lengths, source=…, metadata=…)`: episode i is `make_episode(…, seed=i)`."""

    def make(root: Path, task: TaskSpec, lengths: Sequence[int], source: str = "expert", **metadata: str | int) -> Path:
        return write_dataset(root, task, source, (_episode(task, n, i) for i, n in enumerate(lengths)), metadata=metadata)

    return make
