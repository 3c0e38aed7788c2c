"""Behavior policies: shapes, frames, knobs, and the returns they are said to reach."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation

import m3dt_agent
from m3dt_agent import tasks
from m3dt_agent.data import behavior
from m3dt_agent.data.behavior import behavior_policy, levels, measured_returns
from m3dt_agent.data.behavior_policies import from_callable, from_sb3, goal_features
from m3dt_agent.data.shards import episode_seed, rollout
from m3dt_agent.errors import ConfigError, InvalidValueError, ShapeError


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


def ant_observation(rotation, velocity):
    """A (27,) ant observation: height, torso quaternion (w first), 8 joints, 3 + 3 torso velocities, 8 joint velocities."""
    observation = np.arange(27, dtype=np.float32)
    observation[1:5] = rotation.as_quat()[[3, 0, 1, 2]]
    observation[13:16] = velocity
    return observation


angles = st.floats(-3.0, 3.0)


@given(roll=angles, pitch=angles, yaw=angles, velocity=st.tuples(angles, angles, angles), index=st.integers(0, 39))
def test_ant_features_are_the_observation_turned_by_minus_the_goal(roll, pitch, yaw, velocity, index):
    task = tasks.get(f"ant-dir-{index}")
    turn = Rotation.from_euler("z", -task.goal_direction)
    torso = Rotation.from_euler("xyz", [roll, pitch, yaw])
    features = goal_features(task, ant_observation(torso, velocity))
    expected = ant_observation(turn * torso, turn.apply(velocity))
    sign = np.sign(np.dot(features[1:5], expected[1:5]))  # q and -q are one rotation
    np.testing.assert_allclose(features[1:5], sign * expected[1:5], atol=1e-5)
    np.testing.assert_allclose(np.delete(features, range(1, 5)), np.delete(expected, range(1, 5)), atol=1e-5)


def test_cheetah_features_end_with_the_goal_velocity_and_others_are_untouched():
    task = tasks.get("cheetah-vel-31")
    observation = observation_of(task)
    assert goal_features(task, observation).tolist() == [*observation.tolist(), pytest.approx(task.goal_velocity)]
    assert goal_features(tasks.get("fish-swim"), observation) is observation


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


def test_a_callable_is_clipped_checked_and_reset():
    task = tasks.get("reach")
    seeds = []
    policy = from_callable(task, lambda observation: [2, -2, 0.5, 0], reset=seeds.append)
    policy.reset(9)
    assert seeds == [9]
    assert policy(observation_of(task)).tolist() == [1, -1, 0.5, 0]
    with pytest.raises(ShapeError, match=r"reach.*\(3,\).*\(4,\)"):
        from_callable(task, lambda observation: np.zeros(3))(observation_of(task))
    with pytest.raises(InvalidValueError, match="reach"):
        from_callable(task, lambda observation: np.full(4, np.nan))(observation_of(task))


def test_a_stable_baselines3_checkpoint_acts_as_its_model_and_only_when_trusted(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    task = tasks.get("cheetah-vel-3")
    env = gym.make(task.env_id)
    model = sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    env.close()
    model.save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="trust_pickle"):
        from_sb3(task, tmp_path / "model.zip", algorithm="PPO")
    with pytest.raises(ConfigError, match="A2C, DDPG, PPO"):
        from_sb3(task, tmp_path / "model.zip", algorithm="DQN", trust_pickle=True)
    with pytest.raises(ConfigError, match="walker-run"):
        from_sb3(tasks.get("walker-run"), tmp_path / "model.zip", algorithm="PPO", trust_pickle=True)
    policy = behavior.SB3Checkpoint(str(tmp_path / "model.zip"), "PPO", trust_pickle=True)(task)
    observation = observation_of(task)
    np.testing.assert_array_equal(policy(observation), np.clip(model.predict(observation, deterministic=True)[0], -1, 1))


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
