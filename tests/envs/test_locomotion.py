"""ant-dir and cheetah-vel against a second, plain implementation of their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from m3dt_agent import tasks

mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed: pip install 'm3dt-agent[envs]'")

ASSETS = Path(gym.__file__).parent / "envs/mujoco/assets"


class Oracle:
    """The task simulated again from the same state, one physics step at a time."""

    def __init__(self, env: Any, file: str) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(ASSETS / file))
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:], self.data.qvel[:] = env.data.qpos, env.data.qvel
        mujoco.mj_forward(self.model, self.data)

    def simulate(self, action: NDArray[np.float64]) -> None:
        self.data.ctrl[:] = action
        for _ in range(5):
            mujoco.mj_step(self.model, self.data)

    def torso(self) -> NDArray[np.float64]:
        return self.data.body("torso").xpos.copy()


def _actions(width: int) -> NDArray[np.float64]:
    return np.random.default_rng(2).uniform(-1.5, 1.5, (25, width))


@pytest.mark.parametrize("number", [0, 25])
def test_cheetah_vel(number: int) -> None:
    env = gym.make(f"M3DT/cheetah-vel-{number}-v0").unwrapped
    goal = tasks.get(f"cheetah-vel-{number}").goal_velocity
    env.reset(seed=3)
    oracle = Oracle(env, "half_cheetah.xml")
    for action in _actions(6):
        clipped, before = np.clip(action, -1, 1), oracle.data.qpos[0]
        oracle.simulate(clipped)
        observation, reward, terminated, *_ = env.step(action)
        velocity = (oracle.data.qpos[0] - before) / 0.05
        assert reward == pytest.approx(-abs(velocity - goal) - 0.05 * sum(a**2 for a in clipped))
        expected = [*oracle.data.qpos[1:], *oracle.data.qvel, *oracle.torso()]
        np.testing.assert_allclose(observation, expected, rtol=1e-6)
        assert not terminated


@pytest.mark.parametrize("number", [0, 3])
def test_ant_dir(number: int) -> None:
    env = gym.make(f"M3DT/ant-dir-{number}-v0").unwrapped
    goal = tasks.get(f"ant-dir-{number}").goal_direction
    env.reset(seed=3)
    oracle = Oracle(env, "ant.xml")
    contacts = 0.0
    for action in _actions(8):
        clipped, before = np.clip(action, -1, 1), oracle.torso()
        oracle.simulate(clipped)
        mujoco.mj_rnePostConstraint(oracle.model, oracle.data)
        observation, reward, terminated, *_ = env.step(action)
        dx, dy, _ = (oracle.torso() - before) / 0.05
        contact = sum(min(max(f, -1), 1) ** 2 for f in oracle.data.cfrc_ext.ravel())
        contacts += contact
        expected = dx * math.cos(goal) + dy * math.sin(goal) - 0.5 * sum(a**2 for a in clipped) - 0.5e-3 * contact + 1
        assert reward == pytest.approx(expected)
        np.testing.assert_allclose(observation, [*oracle.data.qpos[2:], *oracle.data.qvel], rtol=1e-6)
        assert terminated == (not 0.2 <= oracle.data.qpos[2] <= 1.0)
    assert contacts > 0, "no contact force was ever part of the reward"


@pytest.mark.parametrize(
    ("z", "velocity", "over"),
    [(0.19, 0, True), (0.21, 0, False), (0.99, 0, False), (1.01, 0, True), (0.5, math.nan, True), (0.5, math.inf, True)],
)
def test_ant_dir_ends_when_it_falls_jumps_or_breaks(z: float, velocity: float, over: bool) -> None:
    env = gym.make("M3DT/ant-dir-0-v0").unwrapped
    env.reset(seed=0)
    env._simulate = lambda action: None  # the state stays as it is set here
    env.data.qpos[2], env.data.qvel[-1] = z, velocity
    assert env.step(np.zeros(8, np.float32))[2] == over


@pytest.mark.parametrize("name", ["ant-dir-0", "cheetah-vel-0"])
def test_start_distribution(name: str) -> None:
    env = gym.make(f"M3DT/{name}-v0").unwrapped
    offsets, velocities = [], []
    for seed in range(300):
        env.reset(seed=seed)
        offsets.append(env.data.qpos - env.model.qpos0)
        velocities.append(env.data.qvel.copy())
    offset, velocity = np.array(offsets), np.array(velocities)
    assert np.abs(offset).max() <= 0.1
    np.testing.assert_allclose(offset.std(axis=0), 0.2 / math.sqrt(12), rtol=0.15)
    np.testing.assert_allclose(velocity.std(axis=0), 0.1, rtol=0.2)
    np.testing.assert_allclose(velocity.mean(axis=0), 0.0, atol=0.03)


def test_dt_is_a_twentieth_of_a_second() -> None:
    for name in ("ant-dir-0", "cheetah-vel-0"):
        env = gym.make(f"M3DT/{name}-v0").unwrapped
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert env.data.time == pytest.approx(0.05)
