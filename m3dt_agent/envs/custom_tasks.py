"""The 11 DMControl tasks that are not in dm_control's suite (M3DT took them from TD-MPC2's benchmark of 30 tasks).

Each is a task of the suite with another reward; model, control time step and time limit are the suite's. Two differ in more:
cup-spin has its own start distribution, and the three-link reacher its own model:

    shoulder0 --0.09 m-- shoulder1 --0.09 m-- wrist --0.09 m-- finger        (the hand capsule is 0.10 m long)

A reward depends only on the state of the physics. The formulas and where they come from are described in
docs/architecture.md#custom-dmcontrol-rewards; `tolerance` is dm_control's.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, cheetah, hopper, pendulum, reacher, walker
from dm_control.utils.rewards import tolerance

_STAND_HEIGHT = 1.2  # walker and cheetah: torso (and foot) height, meters
_WALKER_WALK_SPEED = 1.0  # m/s, the suite's
_WALKER_RUN_SPEED = 8.0  # m/s, the suite's
_CHEETAH_BACKWARDS_SPEED = 8.0  # m/s, 0.8 of the suite's run speed
_CHEETAH_ONE_FOOT_SPEED = 6.0  # m/s
_CHEETAH_JUMP_SPEED = 0.5  # m/s, the drift that a jump on the spot may have
_HOPPER_HEIGHT = (0.6, 2.0)  # meters, the suite's
_HOPPER_BACKWARDS_SPEED = 1.0  # m/s
_PENDULUM_SPEED = 9.0  # rad/s
_CUP_DISTANCE = 0.5  # meters
_CUP_BALL_SPEED = 6.0  # m/s
_CUP_START_INSIDE = 0.9  # probability
_CUP_START_X = (-0.2, 0.2)  # meters, the suite's
_CUP_START_Z = (0.2, 0.5)  # meters, the suite's

_REACHER_LINK = 0.09  # meters
_REACHER_HAND = 0.10  # meters
_REACHER_RANGE = "-80 80"  # degrees, shoulder1 and wrist

_LINEAR_TO_0 = {"value_at_margin": 0.0, "sigmoid": "linear"}
_LINEAR_TO_HALF = {"value_at_margin": 0.5, "sigmoid": "linear"}


def walker_backwards(physics: Any, speed: float) -> float:
    """Rewards being upright and moving backwards at `speed` (m/s) or faster."""
    standing = _at_least(physics.torso_height(), _STAND_HEIGHT, _STAND_HEIGHT / 2)
    stand = (3 * standing + (1 + physics.torso_upright()) / 2) / 4
    moving = _at_least(-physics.horizontal_velocity(), speed, speed / 2, **_LINEAR_TO_HALF)
    return float(stand * (5 * moving + 1) / 6)


def cheetah_backwards(physics: Any) -> float:
    """Grows linearly with the backward speed, up to 8 m/s."""
    return _at_least(-physics.speed(), _CHEETAH_BACKWARDS_SPEED, _CHEETAH_BACKWARDS_SPEED, **_LINEAR_TO_0)


def cheetah_one_foot(physics: Any, lifted_foot: str) -> float:
    """Rewards torso and `lifted_foot` being high, and moving forwards at 6 m/s or faster."""
    heights = physics.named.data.xpos
    foot_up = _at_least(heights[lifted_foot, "z"], _STAND_HEIGHT, _STAND_HEIGHT / 2)
    torso_up = _at_least(heights["torso", "z"], _STAND_HEIGHT, _STAND_HEIGHT / 2)
    moving = _at_least(physics.speed(), _CHEETAH_ONE_FOOT_SPEED, _CHEETAH_ONE_FOOT_SPEED, **_LINEAR_TO_0)
    return (3 * foot_up + 2 * torso_up) / 5 * (5 * moving + 1) / 6


def cheetah_jump(physics: Any) -> float:
    """Rewards torso and both feet being high, and little drift."""
    heights = physics.named.data.xpos
    drift = abs(physics.speed())
    still = float(tolerance(drift, (0.0, _CHEETAH_JUMP_SPEED), _CHEETAH_JUMP_SPEED, **_LINEAR_TO_0))
    middles = [(heights["torso", "z"] + heights[foot, "z"]) / 2 for foot in ("ffoot", "bfoot")]
    ups = [_at_least(middle, _STAND_HEIGHT, _STAND_HEIGHT / 2) for middle in middles]
    return sum((5 * up + still) / 6 for up in ups) / 2


def hopper_backwards(physics: Any) -> float:
    """Rewards being upright and moving backwards at 1 m/s or faster."""
    standing = float(tolerance(physics.height(), _HOPPER_HEIGHT))
    speed = _HOPPER_BACKWARDS_SPEED
    return standing * _at_least(-physics.speed(), speed, speed / 2, **_LINEAR_TO_HALF)


def pendulum_spin(physics: Any) -> float:
    """Grows linearly with the angular speed in either direction, up to 9 rad/s."""
    speed = abs(float(physics.angular_velocity()[0]))
    return _at_least(speed, _PENDULUM_SPEED, _PENDULUM_SPEED / 2, **_LINEAR_TO_HALF)


def cup_spin(physics: Any) -> float:
    """Rewards the ball for being outside the cup, far from it and fast."""
    distance = float(np.linalg.norm(physics.ball_to_target()))
    speed = float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]))
    far = _at_least(distance, _CUP_DISTANCE, _CUP_DISTANCE / 2, **_LINEAR_TO_HALF)
    fast = _at_least(speed, _CUP_BALL_SPEED, _CUP_BALL_SPEED / 2, **_LINEAR_TO_HALF)
    return float((1.0 - physics.in_target()) * (far + 2 * fast) / 3)


def _at_least(value: float, bound: float, margin: float, **shape: Any) -> float:
    return float(tolerance(value, (bound, math.inf), margin, **shape))


def _start_cup_spin(task: Any, physics: Any) -> None:
    inside = task.random.uniform() < _CUP_START_INSIDE
    while True:
        physics.named.data.qpos["ball_x"] = task.random.uniform(*_CUP_START_X)
        physics.named.data.qpos["ball_z"] = task.random.uniform(*_CUP_START_Z)
        physics.after_reset()
        if physics.data.ncon == 0 and (physics.in_target() or not inside):
            return


def three_link_reacher_xml() -> str:
    """The model of the three-link reacher: dm_control's with a second arm between the first and the hand, and shorter links."""
    root = ET.fromstring(reacher.get_model_and_assets()[0])
    arm, hand = _find(root, ".//body[@name='arm']"), _find(root, ".//body[@name='hand']")
    _shape_link(arm, "arm0", "shoulder0", _REACHER_LINK)
    _shape_link(hand, "hand", "wrist", _REACHER_HAND)
    _find(hand, "joint").set("range", _REACHER_RANGE)
    _find(hand, "body[@name='finger']").set("pos", f"{_REACHER_LINK} 0 0")
    hand.set("pos", f"{_REACHER_LINK} 0 0")

    arm.remove(hand)
    middle = ET.SubElement(arm, "body", pos=f"{_REACHER_LINK} 0 0")
    ET.SubElement(middle, "geom", dict(_find(arm, "geom").attrib))
    ET.SubElement(middle, "joint", limited="true", range=_REACHER_RANGE)
    _shape_link(middle, "arm1", "shoulder1", _REACHER_LINK)
    middle.append(hand)

    actuators = _find(root, "actuator")
    actuators.clear()
    for joint in ("shoulder0", "shoulder1", "wrist"):
        ET.SubElement(actuators, "motor", name=joint, joint=joint)
    return ET.tostring(root, encoding="unicode")


def _shape_link(body: ET.Element, name: str, joint: str, length: float) -> None:
    body.set("name", name)
    geom = _find(body, "geom")
    geom.set("name", name)
    geom.set("fromto", f"0 0 0 {length} 0 0")
    _find(body, "joint").set("name", joint)


def _find(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    assert found is not None, path
    return found


def _three_link_reacher(target_size: float) -> Any:
    _, assets = reacher.get_model_and_assets()
    physics = reacher.Physics.from_xml_string(three_link_reacher_xml(), assets)
    return control.Environment(physics, reacher.Reacher(target_size), time_limit=reacher._DEFAULT_TIME_LIMIT)


def _suite_task(
    module: Any,
    make_task: Callable[[], Any],
    reward: Callable[[Any], float],
    start: Callable[[Any, Any], None] | None = None,
) -> Any:
    physics = module.Physics.from_xml_string(*module.get_model_and_assets())
    task = make_task()
    task.get_reward = reward
    if start is not None:
        task.initialize_episode = partial(start, task)
    step = getattr(module, "_CONTROL_TIMESTEP", None)
    return control.Environment(physics, task, time_limit=module._DEFAULT_TIME_LIMIT, control_timestep=step)


_walker = partial(_suite_task, walker, partial(walker.PlanarWalker, move_speed=0))
_cheetah = partial(_suite_task, cheetah, cheetah.Cheetah)

CUSTOM_TASKS: dict[str, Callable[[], Any]] = {
    "walker-walk-backwards": partial(_walker, partial(walker_backwards, speed=_WALKER_WALK_SPEED)),
    "walker-run-backwards": partial(_walker, partial(walker_backwards, speed=_WALKER_RUN_SPEED)),
    "cheetah-run-backwards": partial(_cheetah, cheetah_backwards),
    "cheetah-run-front": partial(_cheetah, partial(cheetah_one_foot, lifted_foot="bfoot")),
    "cheetah-run-back": partial(_cheetah, partial(cheetah_one_foot, lifted_foot="ffoot")),
    "cheetah-jump": partial(_cheetah, cheetah_jump),
    "hopper-hop-backwards": partial(_suite_task, hopper, partial(hopper.Hopper, hopping=True), hopper_backwards),
    "reacher-three-easy": partial(_three_link_reacher, reacher._BIG_TARGET),
    "reacher-three-hard": partial(_three_link_reacher, reacher._SMALL_TARGET),
    "cup-spin": partial(_suite_task, ball_in_cup, ball_in_cup.BallInCup, cup_spin, _start_cup_spin),
    "pendulum-spin": partial(_suite_task, pendulum, pendulum.SwingUp, pendulum_spin),
}
"""Task → function that builds its `dm_control.rl.control.Environment`."""
