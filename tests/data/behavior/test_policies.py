"""Behavior policies themselves: what they see, and policies made of functions and checkpoints."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from data.behavior.test_catalog import observation_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from m3dt_agent import tasks
from m3dt_agent.data import behavior
from m3dt_agent.data.behavior.policies import from_callable, from_sb3, goal_features
from m3dt_agent.errors import ConfigError, InvalidValueError, ShapeError


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
