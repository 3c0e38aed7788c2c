"""Two tasks on a line: walk to its left or to its right end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from m3dt_agent.tasks import Linear, TaskSpec


class Line(gym.Env[Any, Any]):
    """A point that an action in [-3, 3] moves by a tenth of it. The reward is how near it is to `end`."""

    observation_space = Box(-2.0, 2.0, (2,), np.float32)
    action_space = Box(-3.0, 3.0, (1,), np.float32)

    def __init__(self, end: float, render_mode: str | None = None) -> None:
        self._end = end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = float(self.np_random.uniform(-0.5, 0.5))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at = float(np.clip(self._at + action[0] / 10, -2.0, 2.0))
        return self._seen(), 2.0 - abs(self._at - self._end), False, False, {}

    def _seen(self) -> Any:
        return np.array([self._at, 1.0], np.float32)


gym.register("m3dt-lines/Line-v0", entry_point="m3dt_lines:Line")


def specs() -> list[TaskSpec]:
    """The tasks of this package; the entry point names this function."""
    return [
        TaskSpec(
            name,
            "lines",
            obs_dim=2,
            act_dim=1,
            max_episode_steps=12,
            return_scale=10.0,
            score=Linear(0.0, 24.0),
            env="m3dt-lines/Line-v0",
            env_kwargs={"end": end},
            action_low=(-3.0,),
            action_high=(3.0,),
        )
        for name, end in (("line-left", -1.0), ("line-right", 1.0))
    ]


def walker(task: TaskSpec) -> Callable[[Any], Any]:
    """A policy that walks to the end of a task, for `m3dt collect --policy m3dt_lines:walker`."""
    end = task.env_kwargs["end"]
    return lambda obs: np.clip((end - obs[:1]) * 10 / 3, -1.0, 1.0)
