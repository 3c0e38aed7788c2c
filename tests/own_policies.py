"""Policies of one's own for the tasks of own_tasks.py, as `m3dt collect --policy own_policies:make` takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import own_tasks  # noqa: F401  (registers the environments)

from m3dt_agent.tasks import TaskSpec

Policy = Callable[[Any], Any]


def swing_up(observation: Any) -> list[float]:
    """Pendulum-v1: pumps energy, then holds."""
    cos, sin, velocity = observation
    energy = velocity**2 / 2 + 15 * (cos - 1)
    pump = min(max(-energy * velocity / 3, -1), 1)
    hold = -(10 * math.atan2(sin, cos) + 2 * velocity) / 2
    near = 1 / (1 + math.exp(-20 * (cos - 0.85)))  # the top
    return [near * hold + (1 - near) * pump]


_GAIT = (
    (0.26, -0.87, -0.22, 0.02, -0.14, 0.04, 0.06, -0.18, 0.02, 0.0, -0.02, -0.03, 0.01, 0.02, 0.02, -0.02, -0.02),
    (0.72, 0.22, -0.15, 0.37, -0.15, 0.08, 0.42, 0.02, -0.03, 0.05, 0.03, -0.02, -0.02, -0.06, -0.02, 0.01, -0.01),
    (0.1, 0.4, -0.21, -0.17, 0.18, -0.36, -0.27, -0.68, -0.01, -0.01, -0.01, 0.02, 0.04, 0.0, 0.03, 0.01, -0.01),
    (-0.2, 0.51, 0.09, -0.38, -0.43, 0.02, -0.15, -0.57, -0.01, 0.07, -0.02, -0.01, 0.0, 0.06, -0.03, -0.03, 0.02),
    (0.25, -0.06, -0.1, 0.07, 0.5, 0.04, -0.44, -0.06, -0.02, 0.05, 0.01, 0.0, -0.01, 0.08, 0.01, -0.02, 0.01),
    (0.15, 0.24, 0.15, 0.35, -0.02, 0.23, 0.38, -0.07, 0.02, 0.0, -0.01, 0.01, 0.0, -0.04, 0.02, 0.05, 0.05),
)
"""Found by augmented random search in eight minutes on one core: a return of about 1,900 in 1,000 steps."""


def run(observation: Any) -> Any:
    """HalfCheetah-v5: a gait that is linear in what it sees."""
    return np.array(_GAIT) @ observation


def to_the_goal(observation: Any) -> list[float]:
    """Reacher1D: one step to the goal, or as far as an action goes."""
    goal, at, _ = observation
    return [(goal - at) * 5.0]


def copied(observation: Any) -> Any:
    """Mirror: what is to be copied."""
    return observation[:28]


def make(task: TaskSpec) -> Policy:
    """The demonstrator of an environment."""
    return {
        "Pendulum-v1": swing_up,
        "HalfCheetah-v5": run,
        "m3dt-tests/Reacher1D-v0": to_the_goal,
        "m3dt-tests/Mirror-v0": copied,
    }[task.env_id]
