"""Wrappers: episodes that end at success, and resets that are seeded."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from envs.test_metaworld import _play, _policy

from m3dt_agent.envs.wrappers import SeededResets, StopOnSuccess
from m3dt_agent.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # scripted policies leave [-1, 1]


@pytest.mark.parametrize("after", [1, 3])
def test_stop_on_success(after: int) -> None:
    plain, stopped = gym.make("M3DT/reach-v0"), StopOnSuccess(gym.make("M3DT/reach-v0"), after=after)
    expected, steps = _play(plain, _policy("reach"), seed=2), _play(stopped, _policy("reach"), seed=2)
    first = [step[0] for step in expected].index(True)
    assert len(steps) == first + after
    assert steps[-1][2:] == (True, False)
    assert [step[:2] for step in steps] == [step[:2] for step in expected[: first + after]]
    assert len(_play(stopped, _policy("reach"), seed=2)) == first + after, "the count is not cleared by a reset"
    plain.close()
    stopped.close()


def test_stop_on_success_leaves_other_tasks_alone() -> None:
    env = StopOnSuccess(gym.make("M3DT/cheetah-vel-0-v0"))
    env.reset(seed=0)
    flags = [env.step(np.zeros(6, np.float32))[2:4] for _ in range(200)]
    assert flags == [(False, False)] * 199 + [(False, True)]


@pytest.mark.parametrize("after", [0, -1, True, 1.5])
def test_stop_on_success_needs_a_count(after: Any) -> None:
    with pytest.raises(ConfigError, match="after"):
        StopOnSuccess(gym.make("M3DT/cheetah-vel-0-v0"), after=after)


def test_seeded_resets() -> None:
    env, plain = SeededResets(gym.make("M3DT/ant-dir-0-v0"), first=5), gym.make("M3DT/ant-dir-0-v0")
    for seed in (5, 6, 7):
        assert np.array_equal(env.reset()[0], plain.reset(seed=seed)[0])
    assert np.array_equal(env.reset(seed=100)[0], plain.reset(seed=100)[0])
    assert np.array_equal(env.reset()[0], plain.reset(seed=101)[0])
