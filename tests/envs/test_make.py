"""Environments of one's own: made as their task says, alone, side by side with others, and in worker processes."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from own_tasks import POINT, SWING, WIDE, Wide

from m3dt_agent import tasks
from m3dt_agent.envs.make import make_env, registrations, task_of_env, versions_of
from m3dt_agent.envs.vector import MixedTaskVectorEnv
from m3dt_agent.errors import ConfigError, InvalidValueError, ShapeError
from m3dt_agent.tasks import Linear, TaskSpec
from m3dt_agent.tasks.spaces import flat_observation, from_env, to_env

pytestmark = pytest.mark.usefixtures("own_registry")


@pytest.fixture(autouse=True)
def _registered(own_registry: None) -> None:
    for spec in (SWING, POINT, WIDE):
        tasks.register(spec)


@pytest.mark.parametrize("task", [SWING, POINT, WIDE], ids=lambda task: task.name)
def test_an_own_environment_keeps_gymnasiums_contract(task: TaskSpec) -> None:
    env = make_env(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on the bounds of observations
        check_env(env, skip_render_check=True)
    assert (env.observation_space.shape, env.action_space.shape) == ((task.obs_dim,), (task.act_dim,))
    env.close()


def test_actions_reach_the_environment_in_its_own_bounds() -> None:
    env, inner = make_env(SWING), gym.make("Pendulum-v1")
    for action in (-1.0, -0.25, 1.0):
        env.reset(seed=3)
        inner.reset(seed=3)
        ours, theirs = env.step(np.array([action], np.float32)), inner.step(np.array([2.0 * action], np.float32))
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]
    env.close()
    inner.close()


def test_dictionaries_are_joined_in_the_tasks_order_and_success_stays() -> None:
    env = make_env(POINT)
    first, info = env.reset(seed=0)
    goal, at, one = first.tolist()
    assert (one, info) == (1.0, {"is_success": False, "success": False})
    outcomes, solved = [], False
    for _ in range(POINT.max_episode_steps):
        obs, _, _, over, info = env.step(np.array([np.sign(goal - at)], np.float32))
        at, solved = float(obs[1]), solved or bool(info["is_success"])
        outcomes.append(info["success"] == solved)
    assert all(outcomes)
    assert solved
    assert over
    env.close()


@pytest.mark.parametrize(
    ("env_id", "changes", "message"),
    [
        ("m3dt-tests/Choices-v0", {}, "the action of m3dt-tests/Choices-v0 is Discrete"),
        ("m3dt-tests/Pictures-v0", {}, "is an image"),
        ("m3dt-tests/Wide-v0", {"obs_dim": 45}, "obs_dim is 45, but observations of .* have 46"),
        ("m3dt-tests/Wide-v0", {"act_dim": 27}, "act_dim is 27"),
        ("m3dt-tests/Wide-v0", {"observation": ("a",)}, "no entry 'a'"),
        ("m3dt-tests/Wide-v0", {"action_low": (-2.0,) * 28}, "set action_low"),
        ("m3dt-tests/Reacher1D-v0", {"act_dim": 1}, r"'goal/at', 'observation'"),
        ("Pendulum-v1", {"obs_dim": 3, "act_dim": 1}, "which of them -1 and 1 are to mean"),
        ("m3dt-tests/Missing-v0", {}, "Gymnasium cannot make"),
        ("m3dt-tests/Wide-v0", {"env_kwargs": {"colour": 1}}, "colour"),
    ],
)
def test_an_environment_that_does_not_fit_is_named(env_id: str, changes: dict[str, Any], message: str) -> None:
    task = tasks.register(dataclasses.replace(WIDE, name="misfit", env=env_id, **changes))
    with pytest.raises(ConfigError, match=message):
        make_env(task)


def test_only_what_is_registered_here_is_made() -> None:
    stranger = dataclasses.replace(SWING, name="stranger")
    with pytest.raises(ConfigError, match=r"not registered here.*\n\[stranger\]\n"):
        make_env(stranger)
    with pytest.raises(ConfigError, match="registered here with other values of env_kwargs"):
        make_env(dataclasses.replace(SWING, env_kwargs={"g": 1.0}))


def test_a_spec_is_read_from_an_environment() -> None:
    read = task_of_env("Pendulum-v1", name="own-swing", domain="classic", return_scale=200.0, score=Linear(-1500.0, 0.0))
    assert read == SWING
    point = task_of_env(
        POINT.env_id, name="own-point", domain="lines", return_scale=10.0, score="success", max_episode_steps=20
    )
    assert point == POINT
    with pytest.raises(ConfigError, match="have no end; give max_episode_steps"):
        task_of_env(WIDE.env_id, name="w", return_scale=1.0, score="return")
    with pytest.raises(ConfigError, match="only boxes of numbers"):
        task_of_env("m3dt-tests/Choices-v0", name="w", return_scale=1.0, score="return", max_episode_steps=3)


def test_loops_without_the_wrapper_do_the_same() -> None:
    np.testing.assert_array_equal(to_env(POINT, [[-1.0], [0.0], [3.0]]), [[0.0], [5.0], [10.0]])
    np.testing.assert_allclose(from_env(POINT, to_env(POINT, [0.3])), [0.3])
    seen = flat_observation(POINT, {"observation": [2.0, 1.0], "goal": {"at": [[3.0]]}, "unused": "x"})
    np.testing.assert_array_equal(seen, np.array([3.0, 2.0, 1.0], np.float32))
    with pytest.raises(ShapeError, match="no entry 'goal/at'"):
        flat_observation(POINT, {"observation": [2.0, 1.0]})
    with pytest.raises(ShapeError, match="1 entries"):
        to_env(POINT, [1.0, 2.0])


def test_wrong_actions_and_seeds_are_named() -> None:
    env = make_env(SWING)
    with pytest.raises(InvalidValueError, match="seed"):
        env.reset(seed=-1)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=r"\(1,\); got \(2,\)"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(InvalidValueError, match="finite"):
        env.step(np.array([np.nan], np.float32))
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_own_tasks_step_beside_others_as_they_do_alone(workers: int) -> None:
    mixed = (POINT, tasks.get("cheetah-vel-3"), WIDE, SWING)
    env = MixedTaskVectorEnv(mixed, workers=workers)
    assert (env.single_observation_space.shape, env.single_action_space.shape) == ((46,), (28,))
    rng, seen = np.random.default_rng(0), [env.reset(seed=[7, 8, 9, 10])[0]]
    actions = rng.uniform(-1, 1, (5, 4, 28)).astype(np.float32)
    rewards = []
    for action in actions:
        obs, reward, *_ = env.step(action)
        seen.append(obs)
        rewards.append(reward)
    env.close()
    for i, task in enumerate(mixed):
        alone = make_env(task)
        obs, _ = alone.reset(seed=7 + i)
        for t in range(6):
            np.testing.assert_array_equal(seen[t][i, : task.obs_dim], obs)
            assert not seen[t][i, task.obs_dim :].any()
            if t < 5:
                obs, reward, *_ = alone.step(actions[t, i, : task.act_dim])
                assert rewards[t][i] == reward
        alone.close()


def test_a_wider_task_later_must_be_announced() -> None:
    env = MixedTaskVectorEnv([SWING], workers=0)
    with pytest.raises(ShapeError, match="name the wider ones in `later`"):
        env.reset(seed=0, options={"tasks": [WIDE]})
    env.close()
    env = MixedTaskVectorEnv([SWING], workers=1, later=[WIDE])
    obs, _ = env.reset(seed=0, options={"tasks": [WIDE]})
    assert np.count_nonzero(obs) == 46
    env.close()


def test_an_environment_of_the_script_itself_needs_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "m3dt-tests/Local-v0", None)  # type: ignore[arg-type]
    del gym.registry["m3dt-tests/Local-v0"]

    class Local(Wide):
        pass

    gym.register("m3dt-tests/Local-v0", entry_point=Local)
    local = tasks.register(dataclasses.replace(WIDE, name="local", env="m3dt-tests/Local-v0"))
    MixedTaskVectorEnv([local], workers=0).close()
    with pytest.raises(ConfigError, match="cannot import; put it in a module"):
        MixedTaskVectorEnv([local], workers=1)
    with pytest.raises(ConfigError, match="cannot import"):
        registrations([local]).require_importable()
    del gym.registry["m3dt-tests/Local-v0"]


def test_versions_name_who_made_the_environment() -> None:
    assert set(versions_of(SWING)) == {"gymnasium"}
