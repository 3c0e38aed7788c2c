"""Sampling leaves the pages of a pack out of this process's memory, however many of them it has read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.pack import PackedTask, StepsFile
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets

TASK = tasks.get("reach")
EPISODES, LENGTH, WIDTH = 400, TASK.max_episode_steps, TASK.obs_dim + TASK.act_dim + 1  # 35 MB

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts resident pages the Linux way")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "steps.f32"
    np.random.default_rng(0).uniform(-1, 1, (EPISODES * LENGTH, WIDTH)).astype(np.float32).tofile(path)
    return path


@pytest.fixture
def data(path: Path) -> TaskDatasets:
    file = StepsFile(path, WIDTH)
    packed = PackedTask(
        task=TASK,
        stored=file,
        offsets=np.arange(EPISODES + 1) * LENGTH,
        returns=np.arange(EPISODES, dtype=np.float64),
        success=None,
        stop_after_success=0,
        obs_mean=np.zeros(TASK.obs_dim),
        obs_std=np.ones(TASK.obs_dim),
    )
    return TaskDatasets((TASK,), (packed,))


def resident_bytes(path: Path) -> int:
    """Of this process's maps of a file."""
    resident, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Rss":
            resident += 1024 * int(value.split()[0]) if counts else 0
        elif "-" in key.split()[0]:  # the first line of a map, which ends with its file
            counts = line.endswith(str(path))
    return resident


def test_sampling_a_whole_pack_adds_no_pages(path: Path, data: TaskDatasets) -> None:
    config = ModelConfig.preset("tiny")
    statistics, prompts = compute_statistics(data), make_prompts(data, config.prompt_length)
    sampler = BatchSampler(data, statistics, prompts, config, batch_size=64, tasks_per_batch=1, seed=0, stage="backbone")
    before = resident_bytes(path)  # what the prompts touched
    for step in range(300):  # 19,200 windows; the pack has 8,594 pages
        sampler.sample(step)
    assert resident_bytes(path) == before
    steps = data.packed[0].steps  # mapped as long as it is here
    steps.sum()
    assert resident_bytes(path) > before + 30_000_000  # the measure measures
