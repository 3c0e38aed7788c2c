"""Shards: whole episodes there and back, and seeds that are the same everywhere."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import safetensors.numpy

from m3dt_agent import tasks
from m3dt_agent.data import shards
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


class SpoilingPolicy:
    """Zeros whatever it is given, after it has looked at it."""

    def __init__(self, task):
        self.task = task

    def reset(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, observation):
        action = np.tanh(observation[: self.task.act_dim] + self.rng.normal(size=self.task.act_dim)).astype(np.float32)
        observation[:] = 0.0
        return action


class CarefulPolicy(SpoilingPolicy):
    def __call__(self, observation):
        return super().__call__(observation.copy())


@pytest.mark.parametrize("name", ["cheetah-vel-20", "walker-run"])
def test_what_a_policy_does_to_its_observation_is_not_recorded(name, tmp_path):
    """The bytes on disk are those of a policy that leaves it alone."""
    task, written = tasks.get(name), []
    for kind in (CarefulPolicy, SpoilingPolicy):
        jobs = [ShardJob(task, 0, ("custom", "custom+0.2"), 0.0, 3, None, kind)]
        written.append(jobs[0]().content)
    close_environment()
    assert written[0] == written[1]


class BrokenEnv(gym.Env):
    """Gives one number that no dataset may hold, and keeps and spoils the actions that it is given."""

    def __init__(self, task, reward, observation):
        self.task, self.reward, self.observation, self.t = task, reward, observation, 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.ones(self.task.obs_dim, np.float32), {}

    def step(self, action):
        action[:] = 0.5
        self.t += 1
        value = self.observation if self.t == 7 else 1.0
        return np.full(self.task.obs_dim, value, np.float32), self.reward if self.t == 5 else 1.0, False, self.t == 20, {}


@pytest.fixture
def broken(monkeypatch):
    """Makes the next collections of a task happen in a broken environment."""

    def use(task, reward=1.0, observation=1.0):
        close_environment()
        monkeypatch.setitem(shards._open_environments, task, BrokenEnv(task, reward, observation))

    yield use
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"reward": float("nan")}, "step 4: rewards holds NaN"),
        ({"reward": 1e39}, "step 4: rewards holds an infinity"),
        ({"reward": 1e38}, r"step 4: rewards holds 1e\+38; the largest that is taken is 1e\+10"),
        ({"observation": float("inf")}, "step 7: observations holds an infinity"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_bad_episode_is_named_before_a_shard_is_written(job, broken, numbers, problem, tmp_path):
    broken(job.task, **numbers)
    with pytest.raises(
        DatasetError, match=rf"^episode 5 \(level 'zero', seed \d+\), {problem}.*; it would be the same the next time"
    ):
        job()


def test_an_environment_that_changes_its_action_is_not_recorded(job, broken, tmp_path):
    broken(job.task)
    (tmp_path / "shard").write_bytes(job().content)
    assert not next(read_shard(tmp_path / "shard")).actions.any()  # the level "zero"


@pytest.mark.parametrize("drop", ["lengths", "rewards"])
def test_a_shard_without_a_part_is_damaged(job, drop, tmp_path):
    tensors = safetensors.numpy.load(job().content)
    del tensors[drop]
    (tmp_path / "shard").write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(DatasetError, match=r"shard is damaged .*remove it and collect again"):
        list(read_shard(tmp_path / "shard"))
