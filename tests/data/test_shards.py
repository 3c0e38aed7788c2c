"""Shards: whole episodes there and back, and seeds that are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.shards import ShardJob, close_environment, episode_seed, read_shard
from m3dt_agent.errors import DatasetError


@pytest.fixture
def job():
    yield ShardJob(
        task=tasks.get("cheetah-vel-20"),
        first=5,
        levels=("zero", "random"),
        noise=0.0,
        seed=3,
        stop_after_success=None,
        policy=None,
    )
    close_environment()


def test_a_shard_holds_the_episodes_of_its_job_in_order(job, tmp_path):
    path = tmp_path / job.file_name
    path.write_bytes(job().content)
    episodes = list(read_shard(path))
    assert path.name == "00005-00006.safetensors"
    assert [episode.seed for episode in episodes] == [episode_seed(3, job.task, index) for index in (5, 6)]
    assert [episode.observations.shape for episode in episodes] == [(201, job.task.obs_dim)] * 2
    assert not episodes[0].actions.any()
    assert episodes[1].actions.any()
    assert [bool(episode.truncations[-1]) for episode in episodes] == [True, True]
    assert episodes[0].success is None


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "00000-00004.safetensors").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"00000-00004\.safetensors is damaged .*remove it and collect again"):
        next(read_shard(tmp_path / "00000-00004.safetensors"))


def test_episode_seeds_fit_32_bits_and_differ(job):
    seeds = {episode_seed(seed, job.task, index) for seed in range(4) for index in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert np.unique([episode_seed(0, task, 0) for task in tasks.TASKS]).size == 160
