"""Behavior policies: shapes, frames, knobs, and the returns they are said to reach."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import m3dt_agent
from m3dt_agent import tasks
from m3dt_agent.data import behavior
from m3dt_agent.data.behavior import behavior_policy, levels, measured_returns
from m3dt_agent.data.shards import episode_seed, rollout
from m3dt_agent.errors import ConfigError


def observation_of(task, seed=0):
    return np.random.default_rng(seed).normal(size=task.obs_dim).astype(np.float32)


def episodes_of(task, level, count, stop=None):
    env = gym.make(task.env_id)
    policy = behavior_policy(task, level)
    try:
        return [rollout(env, task, policy, episode_seed(7, task, i), stop) for i in range(count)]
    finally:
        env.close()


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_every_level_of_every_task_acts_within_bounds(noise):
    for task in tasks.TASKS:
        assert levels(task)[:2] == ("random", "zero")
        planned = [level for level in levels(task) if level == "planner"]  # needs a simulator: see test_planner
        assert levels(task)[-1 - len(planned)] == "expert"
        for level in set(levels(task)).difference(planned):
            policy = behavior_policy(task, level, noise)
            policy.reset(1)
            action = policy(observation_of(task))
            assert action.shape == (task.act_dim,), (task.name, level)
            assert action.dtype == np.float32, (task.name, level)
            assert np.abs(action).max() <= 1.0, (task.name, level)


def test_a_trained_policy_is_the_network_in_the_file():
    task = tasks.get("walker-run")
    asset = f"{m3dt_agent.__path__[0]}/assets/behavior_policies.safetensors"
    w0, b0, w1, b1, w2, b2 = (
        torch.tensor(load_file(asset)[f"walker-run/medium/{name}"]).float() for name in ("w0", "b0", "w1", "b1", "w2", "b2")
    )
    linear = torch.nn.functional.linear
    x = torch.tensor(observation_of(task))
    x = linear(torch.relu(linear(torch.relu(linear(x, w0.T, b0)), w1.T, b1)), w2.T, b2).tanh()
    np.testing.assert_allclose(behavior_policy(task, "medium")(observation_of(task)), x.numpy(), atol=1e-5)


def test_noise_has_its_deviation_its_seed_and_its_spelling_in_the_level():
    task = tasks.get("cheetah-run")
    observation = observation_of(task) * 0.01
    clean = behavior_policy(task, "expert")(observation)
    noisy = behavior_policy(task, "expert", 0.05)

    def drawn(policy):
        policy.reset(5)
        return np.stack([policy(observation) for _ in range(2000)])

    inside = np.abs(clean) < 0.7
    assert inside.any()
    np.testing.assert_allclose((drawn(noisy) - clean)[:, inside].std(axis=0), 0.05, rtol=0.1)
    np.testing.assert_array_equal(drawn(noisy), drawn(behavior_policy(task, "expert+0.05", 0.9)))
    assert not np.array_equal(noisy(observation), drawn(noisy)[0])


def test_a_random_policy_shares_no_stream_with_an_environment_of_the_same_seed():
    policy = behavior_policy(tasks.get("reach"), "random")
    policy.reset(3)
    assert not np.allclose(policy(np.zeros(39, np.float32)), np.random.default_rng(3).uniform(-1, 1, 4))


@pytest.mark.parametrize(
    ("level", "noise", "message"),
    [
        ("medium", 0.0, "'reach' has no behavior policy 'medium'; it has random, zero, expert"),
        ("expert+much", 0.0, "must be a number"),
        ("expert", -0.1, ">= 0"),
        ("expert", float("nan"), "finite"),
    ],
)
def test_levels_and_noises_that_do_not_exist(level, noise, message):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        behavior_policy(tasks.get("reach"), level, noise)


def test_the_table_lists_every_task():
    table = behavior.behavior_table()
    assert [row.task for row in table] == list(tasks.TASKS)
    assert [row.kind for row in table].count("scripted") == 50
    for row in table:
        assert set(row.returns) <= set(row.levels)
        assert row.kind == "scripted" or row.returns["expert"].mean > row.returns.get("medium", row.returns["expert"]).mean - 1


@pytest.mark.parametrize(
    ("names", "level", "count"),
    [
        (["walker-walk"], "expert", 6),
        (["cartpole-swingup"], "medium", 6),
        (["reacher-three-easy"], "expert", 6),
        (["hopper-stand"], "novice", 6),
        ([f"ant-dir-{i}" for i in range(0, 40, 4)], "expert", 1),
        ([f"cheetah-vel-{i}" for i in range(0, 40, 2)], "expert", 1),
    ],
)
def test_policies_reach_the_returns_in_the_table(names, level, count):
    published = measured_returns(tasks.get(names[0]))[level]
    returns = [episode.episode_return for name in names for episode in episodes_of(tasks.get(name), level, count)]
    # Both means are estimates from episodes with deviation `std`: the table's from 20 (DMControl) or 80. Four deviations of
    # their difference, and 1% for rounding the weights to float16 and for another CPU's floating point.
    measured_over = 20 if count > 1 else 80
    tolerance = 4 * published.std * (1 / measured_over + 1 / len(returns)) ** 0.5 + 0.01 * abs(published.mean)
    assert np.mean(returns) == pytest.approx(published.mean, abs=tolerance)


def test_scripted_policies_succeed():
    names = ("reach", "button-press-topdown", "door-open", "drawer-close", "handle-pull-side", "assembly")
    episodes = {name: episodes_of(tasks.get(name), "scripted", 2, stop=1) for name in names}
    assert [name for name, found in episodes.items() if not all(episode.success[-1] for episode in found)] == []
    assert all(episode.terminations[-1] and episode.length < 500 for found in episodes.values() for episode in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"w1": np.zeros((128, 3), np.float16)},
            r"layer 1 of walker-run/expert is \(128, 3\) and \(128,\), which",
        ),
        ({"b2": np.zeros(6, np.float16) * np.nan}, "layer 2 of walker-run/expert holds a NaN"),
        ({"w0": np.zeros(24, np.float16)}, "layer 0 of walker-run/expert"),
        ({"w2": None}, "not a readable file of behavior policies"),
    ],
)
def test_weights_that_are_no_policy_of_the_task_are_named(change, message, tmp_path):
    task = tasks.get("walker-run")
    shapes = {"w0": (24, 128), "b0": (128,), "w1": (128, 128), "b1": (128,), "w2": (128, 6), "b2": (6,)}
    layers = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()} | change
    save_file({f"walker-run/expert/{name}": array for name, array in layers.items() if array is not None}, tmp_path / "own")
    with pytest.raises(ConfigError, match=message):
        behavior_policy(task, weights=tmp_path / "own")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is a pipe, a device or a socket"):
        behavior_policy(task, weights=tmp_path / "pipe")
