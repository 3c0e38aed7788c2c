"""DMControl: the goldens of all 30 tasks, dm_env's observation order, and rewards on states the goldens never reach."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from m3dt_agent import tasks

mujoco = pytest.importorskip("mujoco")
suite = pytest.importorskip("dm_control.suite", reason="dm_control is not installed: pip install 'm3dt-agent[envs]'")

TASKS = tasks.by_domain("dmcontrol")
TOLERANCE = 1e-6


def _make(name: str) -> Any:
    return gym.make(f"M3DT/{name}-v0").unwrapped


@pytest.fixture(scope="module")
def goldens(golden: Path) -> dict[str, NDArray[np.float64]]:
    return load_file(golden / "dmc_rollouts.safetensors")


def _place_target(physics: Any, position: NDArray[np.float64], size: NDArray[np.float64]) -> None:
    model = physics.model.ptr
    for kind, positions, sizes in (
        (mujoco.mjtObj.mjOBJ_GEOM, model.geom_pos, model.geom_size),
        (mujoco.mjtObj.mjOBJ_SITE, model.site_pos, model.site_size),
    ):
        target = mujoco.mj_name2id(model, kind, "target")
        if target >= 0:
            positions[target], sizes[target] = position, size


def _place(physics: Any, start: dict[str, NDArray[np.float64]]) -> None:
    if "target_pos" in start:
        _place_target(physics, start["target_pos"], start["target_size"])
    physics.data.qpos[:] = start["qpos"]
    physics.data.qvel[:] = start["qvel"]
    physics.forward()  # what the next step needs of the new state; it overwrites the warm start
    physics.data.qacc_warmstart[:] = start["qacc_warmstart"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_goldens(task: tasks.TaskSpec, goldens: dict[str, NDArray[np.float64]]) -> None:
    env = _make(task.name)
    for number in range(4):
        prefix = f"{task.name}/{number}/"
        start = {key.removeprefix(prefix): value for key, value in goldens.items() if key.startswith(prefix)}
        env.reset(seed=0)
        _place(env.physics, start)
        for action, observation, reward in zip(start["actions"], start["obs"], start["rewards"], strict=True):
            got, got_reward, *_ = env.step(action)
            np.testing.assert_allclose(got, observation, rtol=TOLERANCE, atol=1e-12)
            np.testing.assert_allclose(got_reward, reward, rtol=TOLERANCE, atol=1e-12)
    env.close()


def test_the_goldens_cover_all_tasks(goldens: dict[str, NDArray[np.float64]]) -> None:
    assert {key.split("/")[0] for key in goldens} == {task.name for task in TASKS}


@pytest.mark.parametrize(("name", "domain", "task"), [("walker-walk", "walker", "walk"), ("fish-swim", "fish", "swim")])
def test_observations_follow_dm_env_order_and_actions_repeat(name: str, domain: str, task: str) -> None:
    env, plain = _make(name), suite.load(domain, task, task_kwargs={"random": np.random.RandomState(4)})
    observation, _ = env.reset(seed=4)
    step = plain.reset()
    action = np.linspace(-0.9, 0.8, env.action_space.shape[0])
    for _ in range(20):
        assert np.array_equal(
            observation, np.concatenate([np.ravel(part) for part in step.observation.values()]).astype(np.float32)
        )
        rewards = [(step := plain.step(action)).reward for _ in range(2)]
        observation, reward, *_ = env.step(action)
        assert reward == pytest.approx(sum(rewards))
    assert list(step.observation) != sorted(step.observation), "this task would not notice sorted keys"
    env.close()


def test_dm_control_never_starts_an_episode_by_itself() -> None:
    env = _make("pendulum-swingup")
    env.reset(seed=0)
    for _ in range(500):
        _, _, terminated, truncated, _ = env.step(np.zeros(1))
    assert (terminated, truncated) == (False, True)
    assert env.physics.time() == pytest.approx(20.0)  # 1,000 control steps of 0.02 s


# Rewards the goldens leave at zero, in states that earn them.


def _reward_at(name: str, qpos: dict[str, float], qvel: dict[str, float] | None = None) -> float:
    env = _make(name)
    env.reset(seed=0)
    with env.physics.reset_context():
        for joint, value in qpos.items():
            env.physics.named.data.qpos[joint] = value
        for joint, value in (qvel or {}).items():
            env.physics.named.data.qvel[joint] = value
    reward = env.step(np.zeros(env.action_space.shape))[1]
    env.close()
    return float(reward)


def test_cup_catch_rewards_a_caught_ball() -> None:
    caught = {"ball_x": 0.0, "ball_z": 0.6 - 0.2 - 0.05}  # the middle of the target box
    assert _reward_at("cup-catch", caught) == 2.0
    assert _reward_at("cup-catch", {"ball_x": 0.0, "ball_z": 0.1}) == 0.0


def test_finger_spin_rewards_a_spinning_body() -> None:
    away = {"proximal": 1.5, "distal": 1.0}
    assert _reward_at("finger-spin", away, {"hinge": -20.0}) == 2.0
    assert _reward_at("finger-spin", away, {"hinge": -10.0}) == 0.0


def test_pendulum_swingup_rewards_8_degrees() -> None:
    assert _reward_at("pendulum-swingup", {"hinge": 0.0}) == 2.0
    assert _reward_at("pendulum-swingup", {"hinge": math.radians(12)}) == 0.0


def test_cartpole_swingup_sparse_rewards_upright_in_the_middle() -> None:
    assert _reward_at("cartpole-swingup-sparse", {"slider": 0.0, "hinge_1": 0.0}) == 2.0
    assert _reward_at("cartpole-swingup-sparse", {"slider": 0.5, "hinge_1": 0.0}) == 0.0
    assert _reward_at("cartpole-swingup-sparse", {"slider": 0.0, "hinge_1": math.pi}) == 0.0
