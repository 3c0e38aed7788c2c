"""The custom DMControl tasks: their models, start distributions and rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from envs.test_dm_control import _make, _place_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_reacher_three_rewards_touching_the_target() -> None:
    straight = {"shoulder0": 0.0, "shoulder1": 0.0, "wrist": 0.0}
    for name, radius in (("reacher-three-easy", 0.05), ("reacher-three-hard", 0.015)):
        env = _make(name)
        for distance, expected in ((radius, 2.0), (radius + 0.02, 0.0)):  # the finger itself has a radius of 0.01
            env.reset(seed=0)
            finger = 3 * 0.09
            _place_target(env.physics, np.array([finger - distance, 0.0, 0.01]), np.array([radius, 0.0, 0.0]))
            with env.physics.reset_context():
                for joint, value in straight.items():
                    env.physics.named.data.qpos[joint] = value
            assert env.step(np.zeros(3))[1] == expected, (name, distance)
        env.close()


def test_three_link_reacher_model() -> None:
    env = _make("reacher-three-easy")
    env.reset(seed=0)
    with env.physics.reset_context():
        env.physics.data.qpos[:] = 0.0
    model, positions = env.physics.named.model, env.physics.named.data.xpos
    assert [positions[body, "x"] for body in ("arm0", "arm1", "hand", "finger")] == pytest.approx([0.0, 0.09, 0.18, 0.27])
    # A capsule's half length is its second size.
    assert [model.geom_size[link, 1] for link in ("arm0", "arm1", "hand")] == pytest.approx([0.045, 0.045, 0.05])
    assert list(model.jnt_limited[["shoulder0", "shoulder1", "wrist"]]) == [0, 1, 1]
    assert np.degrees(model.jnt_range[["shoulder1", "wrist"]]).ravel().tolist() == pytest.approx([-80, 80, -80, 80])
    env.close()


def test_cup_spin_starts_inside_nine_times_in_ten_and_touches_nothing() -> None:
    env = _make("cup-spin")
    inside = 0
    for seed in range(200):
        observation, _ = env.reset(seed=seed)
        assert env.physics.data.ncon == 0
        assert -0.2 <= observation[2] <= 0.2
        assert 0.2 <= observation[3] <= 0.5
        inside += int(env.physics.in_target())
    # 0.9 plus the few outside draws that land inside; 200 draws have a standard deviation of 4.
    assert 166 <= inside <= 195
    env.close()


# The rewards against an oracle, written from their formulas (docs/architecture.md#custom-dmcontrol-rewards) on the raw
# simulation and without dm_control's helpers.


def _gauss(x: float, bound: float, margin: float) -> float:
    """1 above `bound`, 0.1 a margin below it."""
    return 1.0 if x >= bound else 0.1 ** (((bound - x) / margin) ** 2)


def _ramp(x: float, bound: float, margin: float, at_margin: float) -> float:
    """1 above `bound`, straight through `at_margin` a margin below it, never negative."""
    return min(1.0, max(0.0, 1.0 - (1.0 - at_margin) * (bound - x) / margin))


class Oracle:
    """Reads the raw `mjModel` and `mjData`."""

    def __init__(self, physics: Any) -> None:
        self.model, self.data = physics.model.ptr, physics.data.ptr

    def z(self, body: str) -> float:
        return float(self.data.body(body).xpos[2])

    def vx(self) -> float:
        return float(self.data.sensor("torso_subtreelinvel").data[0])

    def walker(self, speed: float) -> float:
        upright = (1 + float(self.data.body("torso").xmat[8])) / 2
        stand = (3 * _gauss(self.z("torso"), 1.2, 0.6) + upright) / 4
        return stand * (5 * _ramp(-self.vx(), speed, speed / 2, 0.5) + 1) / 6

    def cheetah_one_foot(self, foot: str) -> float:
        up = (3 * _gauss(self.z(foot), 1.2, 0.6) + 2 * _gauss(self.z("torso"), 1.2, 0.6)) / 5
        return up * (5 * _ramp(self.vx(), 6, 6, 0) + 1) / 6

    def cheetah_jump(self) -> float:
        still = _ramp(-abs(self.vx()), -0.5, 0.5, 0)
        feet = [_gauss((self.z("torso") + self.z(foot)) / 2, 1.2, 0.6) for foot in ("bfoot", "ffoot")]
        return sum(5 * foot + still for foot in feet) / 12

    def hopper(self) -> float:
        height = float(self.data.body("torso").xipos[2] - self.data.body("foot").xipos[2])
        return float(0.6 <= height <= 2) * _ramp(-self.vx(), 1, 0.5, 0.5)

    def cup(self) -> float:
        ball, target = self.data.body("ball").xpos, self.data.site("target").xpos
        offset = np.abs(target - ball)[[0, 2]]
        room = self.model.site("target").size[[0, 2]] - self.model.geom("ball").size[0]
        speed = math.hypot(self.data.joint("ball_x").qvel[0], self.data.joint("ball_z").qvel[0])
        reward = (_ramp(math.hypot(*offset), 0.5, 0.25, 0.5) + 2 * _ramp(speed, 6, 3, 0.5)) / 3
        return 0.0 if (offset < room).all() else reward

    def pendulum(self) -> float:
        return _ramp(abs(float(self.data.joint("hinge").qvel[0])), 9, 4.5, 0.5)


ORACLES: dict[str, Callable[[Oracle], float]] = {
    "walker-walk-backwards": lambda oracle: oracle.walker(1),
    "walker-run-backwards": lambda oracle: oracle.walker(8),
    "cheetah-run-backwards": lambda oracle: _ramp(-oracle.vx(), 8, 8, 0),
    "cheetah-run-front": lambda oracle: oracle.cheetah_one_foot("bfoot"),
    "cheetah-run-back": lambda oracle: oracle.cheetah_one_foot("ffoot"),
    "cheetah-jump": Oracle.cheetah_jump,
    "hopper-hop-backwards": Oracle.hopper,
    "cup-spin": Oracle.cup,
    "pendulum-spin": Oracle.pendulum,
}


@pytest.fixture(params=ORACLES, scope="module")
def custom(request: pytest.FixtureRequest) -> Iterator[Any]:
    env = _make(request.param)
    yield env
    env.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), speed=st.floats(0, 20))
def test_custom_rewards_against_an_oracle(custom: Any, seed: int, speed: float) -> None:
    physics, rng = custom.physics, np.random.default_rng(seed)
    with physics.reset_context():
        # Wide around the start, so that heights, directions and speeds fall on both sides of every bound.
        physics.data.qpos[:] += rng.uniform(-1, 1, physics.model.nq) * rng.choice([0.1, 1.0])
        physics.data.qvel[:] = speed * rng.uniform(-1, 1, physics.model.nv)
    reward = custom._sim._env.task.get_reward(physics)
    assert reward == pytest.approx(ORACLES[custom.task.name](Oracle(physics)), rel=1e-9, abs=1e-12)


def test_the_oracle_states_reach_high_and_low_rewards(custom: Any) -> None:
    rewards, rng, physics = [], np.random.default_rng(0), custom.physics
    for _ in range(250):
        with physics.reset_context():
            physics.data.qpos[:] += rng.uniform(-1, 1, physics.model.nq) * rng.choice([0.1, 1.0])
            physics.data.qvel[:] = rng.uniform(0, 20) * rng.uniform(-1, 1, physics.model.nv)
        rewards.append(custom._sim._env.task.get_reward(physics))
    assert min(rewards) < 0.2
    assert max(rewards) > 0.6
