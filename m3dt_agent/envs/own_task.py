"""One wrapper between an environment of one's own and this package.

    agent, datasets, evaluation     flat float32 observations (obs_dim,), actions (act_dim,) in [-1, 1], info["success"]
    ── OwnTask ──
    the environment                 boxes or dictionaries of boxes, any dtype and shape; its own bounds for actions

tasks/spaces.py has the arithmetic, also for loops without this wrapper.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space

from ..errors import InvalidValueError, ShapeError
from ..tasks import TaskSpec
from ..tasks.spaces import Float32Array, fitting_spaces, flat_observation, to_env


class OwnTask(gym.Wrapper[Float32Array, Float32Array, Any, Any], gym.utils.RecordConstructorArgs):
    """An environment as its task says it is. See the top of this file.

    If the task has success, `reset` and `step` give `info["success"]`, a bool that stays True for the rest of the episode once
    the environment's own "success" or "is_success" was true.

    Raises:
        ConfigError: the environment's spaces are of a kind that cannot be used, or do not fit the task.
    """

    def __init__(self, env: gym.Env[Any, Any], task: TaskSpec) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, task=task)
        gym.Wrapper.__init__(self, env)
        self.task = task
        self._own_actions = fitting_spaces(task, env.observation_space, env.action_space, task.env_id)
        self.observation_space = Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.action_space: Space[Float32Array] = Box(-1.0, 1.0, (task.act_dim,), np.float32)
        self._success = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Float32Array, dict[str, Any]]:
        """Starts an episode and returns its first observation and info.

        Raises:
            InvalidValueError: `seed` is negative.
        """
        if seed is not None and seed < 0:
            raise InvalidValueError(f"a seed must be >= 0; got {seed}")
        observation, info = self.env.reset(seed=seed, options=options)
        self._success = False
        return flat_observation(self.task, observation), self._told(info)

    def step(self, action: Float32Array) -> tuple[Float32Array, float, bool, bool, dict[str, Any]]:
        """Takes one step with an action (act_dim,), which is clipped to [-1, 1].

        Raises:
            ShapeError: the shape of `action` is not (act_dim,). InvalidValueError: `action` holds a NaN or an infinity.
        """
        array = np.asarray(action, np.float64)
        if array.shape != (self.task.act_dim,):
            raise ShapeError(f"{self.task.name}: an action has shape ({self.task.act_dim},); got {array.shape}")
        if not np.isfinite(array).all():
            raise InvalidValueError(f"{self.task.name}: an action must be finite; got {array.tolist()}")
        own: Any = to_env(self.task, array).astype(self._own_actions.dtype).reshape(self._own_actions.shape)
        observation, reward, terminated, truncated, info = self.env.step(own)
        return flat_observation(self.task, observation), float(reward), bool(terminated), bool(truncated), self._told(info)

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        """The info with a latched "success" if the task has success, and without one if it has not."""
        told = {key: value for key, value in info.items() if key != "success"}
        if self.task.has_success:
            self._success = self._success or bool(np.any(info.get("success", info.get("is_success", False))))
            told["success"] = self._success
        return told
