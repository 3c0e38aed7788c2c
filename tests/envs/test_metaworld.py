"""Meta-World: visible random goals, scripted policies that succeed, success latched."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

policies = pytest.importorskip("metaworld.policies", reason="metaworld is not installed: pip install 'm3dt-agent[envs]'")

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # scripted policies leave [-1, 1]

SCRIPTED = {"reach": "reach-v3", "drawer-close": "drawer-close-v3", "button-press-topdown": "button-press-topdown-v3"}


def _policy(name: str) -> Any:
    return policies.ENV_POLICY_MAP[SCRIPTED[name]]()


def _play(env: gym.Env, policy: Any, seed: int) -> list[tuple[bool, float, bool, bool]]:
    """(success, reward, terminated, truncated) of every step."""
    observation, info = env.reset(seed=seed)
    assert info == {"success": False}
    steps, over = [], False
    while not over:
        observation, reward, terminated, truncated, info = env.step(policy.get_action(observation.astype(np.float64)))
        steps.append((info["success"], reward, terminated, truncated))
        over = terminated or truncated
    return steps


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_policies_succeed_and_success_is_latched(name: str) -> None:
    env = gym.make(f"M3DT/{name}-v0")
    steps = _play(env, _policy(name), seed=0)
    success = [step[0] for step in steps]
    first = success.index(True)
    assert not any(success[:first])
    assert all(success[first:])
    assert len(steps) == 500
    assert steps[-1][2:] == (False, True)
    assert 8 < max(step[1] for step in steps) <= 10, "reward function v2 pays up to 10 a step"
    env.close()


def test_the_goal_is_visible_random_and_in_the_tasks_own_space() -> None:
    env = gym.make("M3DT/pick-place-v0")
    simulation = env.unwrapped._sim
    goals = []
    for seed in range(40):
        observation, _ = env.reset(seed=seed)
        np.testing.assert_allclose(observation[-3:], simulation._target_pos, rtol=1e-6)
        assert simulation.goal_space.contains(simulation._target_pos.astype(np.float32))
        np.testing.assert_array_equal(env.step(np.zeros(4, np.float32))[0][-3:], observation[-3:])
        goals.append(observation[-3:])
    low, high = simulation.goal_space.low, simulation.goal_space.high
    spread = (np.max(goals, axis=0) - np.min(goals, axis=0)) / (high - low)
    assert (spread > 0.7).all(), "goals do not fill the goal space"
    assert (env.observation_space.low[-3:] == low.astype(np.float32)).all()
    assert (env.observation_space.high[-3:] > 0).all(), "the published space still hides the goal"
    env.close()


def test_observations_stack_the_last_two_frames() -> None:
    env = gym.make("M3DT/push-v0")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation[:18], observation[18:36])
    for _ in range(3):
        before, (observation, *_) = observation, env.step(np.array([1, -1, 0.5, 1], np.float32))
        np.testing.assert_array_equal(observation[18:36], before[:18])
        assert not np.array_equal(observation[:18], before[:18])
    env.close()
