"""The contract every one of the 160 environments keeps. A dozen tasks run always, all 160 with the slow tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from m3dt_agent import tasks
from m3dt_agent.envs.base import fold_seed
from m3dt_agent.errors import ConfigError, InvalidValueError, M3DTError, ShapeError
from m3dt_agent.tasks import TaskSpec

pytest.importorskip("metaworld", reason="the simulators are not installed: pip install 'm3dt-agent[envs]'")
pytest.importorskip("dm_control", reason="the simulators are not installed: pip install 'm3dt-agent[envs]'")

FAST = {
    *("reach", "basketball", "peg-insert-side", "door-open"),
    *("walker-run", "fish-swim", "finger-spin", "cup-spin", "reacher-three-easy", "hopper-hop-backwards"),
    *("ant-dir-3", "cheetah-vel-25"),
}


def _param(task: TaskSpec) -> object:
    return pytest.param(task, id=task.name, marks=() if task.name in FAST else pytest.mark.slow)


@pytest.fixture(params=[_param(task) for task in tasks.TASKS], scope="module")
def env(request: pytest.FixtureRequest) -> Iterator[gym.Env]:
    env = gym.make(request.param.env_id)
    yield env
    env.close()


def _spec(env: gym.Env) -> TaskSpec:
    return env.unwrapped.task


def _actions(env: gym.Env, n: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(11)
    return rng.uniform(-1, 1, (n, *env.action_space.shape)).astype(np.float32)


def _rollout(env: gym.Env, actions: NDArray[np.float32], seed: int | None) -> list[tuple]:
    observation, info = env.reset(seed=seed)
    steps = [(observation.copy(), 0.0, False, False, dict(info))]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append((observation.copy(), reward, terminated, truncated, dict(info)))
        if terminated or truncated:
            break
    return steps


def _same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x[0], y[0]) and x[1:] == y[1:] for x, y in zip(a, b, strict=True))


def test_gymnasium_accepts_it(env: gym.Env) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity")
        warnings.filterwarnings("ignore", message=".*maximum and minimum values are equal")  # a goal with a fixed coordinate
        check_env(env.unwrapped, skip_render_check=True)


def test_spaces_are_truthful_and_float32(env: gym.Env) -> None:
    task = _spec(env)
    assert env.observation_space.shape == (task.obs_dim,)
    assert env.action_space.shape == (task.act_dim,)
    assert env.observation_space.dtype == env.action_space.dtype == np.float32
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    assert env.metadata["render_modes"] == ["rgb_array"]
    for observation, reward, *_ in _rollout(env, _actions(env, 30), seed=1):
        assert observation.dtype == np.float32
        assert env.observation_space.contains(observation)
        assert isinstance(reward, float)


def test_first_observations_lie_in_the_space(env: gym.Env) -> None:
    for seed in range(10):
        assert env.observation_space.contains(env.reset(seed=seed)[0])


def test_the_seed_decides_the_episode(env: gym.Env) -> None:
    actions = _actions(env, 30)
    first = _rollout(env, actions, seed=7)
    other = _rollout(env, actions, seed=8)
    assert _same(first, _rollout(env, actions, seed=7)), "an earlier episode leaks into this one"
    assert not np.array_equal(first[0][0], other[0][0])
    fresh = gym.make(env.spec)
    assert _same(first, _rollout(fresh, actions, seed=7)), "a new environment gives another episode"
    fresh.close()


def test_unseeded_resets_follow_from_the_first_seed(env: gym.Env) -> None:
    sequences = [[env.reset(seed=3)[0], env.reset()[0], env.reset()[0]] for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*sequences, strict=True))
    assert not np.array_equal(sequences[0][1], sequences[0][2])


def test_seeds_beyond_32_bits(env: gym.Env) -> None:
    wide, narrow = env.reset(seed=2**40 + 7)[0], env.reset(seed=7)[0]
    assert not np.array_equal(wide, narrow)
    assert np.array_equal(wide, env.reset(seed=2**40 + 7)[0])


def test_a_negative_seed_is_refused(env: gym.Env) -> None:
    with pytest.raises(InvalidValueError, match="-1"):
        env.unwrapped.reset(seed=-1)


def test_actions_are_clipped(env: gym.Env) -> None:
    actions = 3 * _actions(env, 10)
    assert _same(_rollout(env, actions, seed=5), _rollout(env, np.clip(actions, -1, 1), seed=5))


def test_bad_actions_are_refused_and_change_nothing(env: gym.Env) -> None:
    width = _spec(env).act_dim
    actions = _actions(env, 2)
    expected = _rollout(env, actions, seed=5)
    env.reset(seed=5)
    with pytest.raises(ShapeError, match=rf"\({width},\).*\({width + 1},\)"):
        env.step(np.zeros(width + 1, np.float32))
    with pytest.raises(InvalidValueError, match="finite"):
        env.step(np.full(width, np.nan, np.float32))
    assert np.array_equal(env.step(actions[0])[0], expected[1][0])


def test_an_episode_lasts_its_length_and_not_longer(env: gym.Env) -> None:
    task = _spec(env)
    env.reset(seed=0)
    zero, length, terminated, truncated = np.zeros(task.act_dim, np.float32), 0, False, False
    while not (terminated or truncated):
        _, _, terminated, truncated, _ = env.step(zero)
        length += 1
    assert length == task.max_episode_steps or (terminated and task.domain == "ant-dir")
    assert truncated != terminated
    with pytest.raises(M3DTError, match="reset"):
        env.unwrapped.step(zero)


def test_success_is_reported_where_it_exists(env: gym.Env) -> None:
    for *_, info in _rollout(env, _actions(env, 3), seed=0):
        assert info == ({"success": False} if _spec(env).domain == "metaworld" else {})


def test_the_spec_survives_json(env: gym.Env) -> None:
    spec = EnvSpec.from_json(env.spec.to_json())
    copy = gym.make(spec)
    assert copy.unwrapped.task == _spec(env)
    copy.close()


def test_stepping_before_any_reset_is_refused() -> None:
    env = gym.make("M3DT/cheetah-vel-0-v0").unwrapped
    with pytest.raises(M3DTError, match="reset"):
        env.step(np.zeros(6, np.float32))


def test_unknown_render_modes_are_refused() -> None:
    from m3dt_agent.envs.locomotion import make

    with pytest.raises(ConfigError, match=r"rgb_array.*human"):
        make("ant-dir-0", render_mode="human")


def test_frames_per_second_are_the_inverse_of_the_time_step() -> None:
    expected = {
        "reach": 80.0,
        "walker-run": 20.0,
        "fish-swim": 12.5,
        "cheetah-run": 50.0,
        "ant-dir-3": 20.0,
        "cheetah-vel-25": 20.0,
    }
    for name, fps in expected.items():
        env = gym.make(f"M3DT/{name}-v0")
        assert env.metadata["render_fps"] == pytest.approx(fps), name
        env.close()


def test_folded_seeds_keep_32_bits_and_mix_the_rest() -> None:
    assert [fold_seed(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    folded = {fold_seed(7 + (high << 32)) for high in range(1000)}
    assert len(folded) == 1000
    assert all(0 <= seed < 2**32 for seed in folded)
