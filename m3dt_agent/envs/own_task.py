"""One wrapper between an environment of one's own and this package.

    agent, datasets, evaluation     flat float32 observations (obs_dim,), actions (act_dim,) in [-1, 1], info["success"]
    ── OwnTask ──
    the environment                 boxes or dictionaries of boxes, any dtype and shape; its own bounds for actions

`to_env`, `from_env` and `flat_observation` do the same for a loop without this wrapper, such as that of a robot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Space
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, InvalidValueError, ShapeError
from ..tasks import TaskSpec

Float32Array = NDArray[np.float32]


def to_env(task: TaskSpec, action: ArrayLike) -> NDArray[np.float64]:
    """What an agent's action (…, act_dim) in [-1, 1] means to the environment: -1 is its lowest action, 1 its highest.

    What lies outside [-1, 1] is clipped.

    Raises:
        ShapeError: the last axis is not act_dim long.
    """
    low, high = np.array(task.action_bounds, np.float64)
    scaled = (np.clip(_actions(task, action), -1.0, 1.0) + 1.0) / 2.0
    own: NDArray[np.float64] = np.clip(low + scaled * (high - low), low, high)
    return own


def from_env(task: TaskSpec, action: ArrayLike) -> NDArray[np.float64]:
    """The action (…, act_dim) that `to_env` turns into `action`, which may lie outside [-1, 1] as `action` does its bounds.

    Raises:
        ShapeError: the last axis is not act_dim long.
    """
    low, high = np.array(task.action_bounds, np.float64)
    ours: NDArray[np.float64] = (_actions(task, action) - low) / (high - low) * 2.0 - 1.0
    return ours


def _actions(task: TaskSpec, action: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(action, np.float64)
    if array.ndim == 0 or array.shape[-1] != task.act_dim:
        raise ShapeError(f"{task.name}: an action has {task.act_dim} entries; got shape {array.shape}")
    return array


def flat_observation(task: TaskSpec, observation: Any) -> Float32Array:
    """The observation as the agent sees it, (obs_dim,) float32: entries of a dictionary joined in the task's order.

    Raises:
        ShapeError: an entry is missing, or the width is not the task's.
    """
    parts = [_entry(task, observation, key) for key in task.observation] if task.observation else [observation]
    flat = np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])
    if flat.shape != (task.obs_dim,):
        raise ShapeError(f"{task.name}: an observation has {task.obs_dim} entries; the environment gives {flat.size}")
    return flat


def _entry(task: TaskSpec, observation: Any, key: str) -> Any:
    found = observation
    for part in key.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            there = f"there are {', '.join(map(str, found))}" if isinstance(found, Mapping) else "it is no dictionary"
            raise ShapeError(f"{task.name}: the observation has no entry {key!r}; {there}")
        found = found[part]
    return found


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
        width = sum(int(np.prod(entry.shape)) for entry in chosen_boxes(task, env))
        if width != task.obs_dim:
            raise ConfigError(f"{task.name}: obs_dim is {task.obs_dim}, but observations of {task.env_id} have {width} entries")
        self._own_actions = checked_actions(task, env.action_space)
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


def chosen_boxes(task: TaskSpec, env: gym.Env[Any, Any]) -> list[Box]:
    """The boxes of which the task's observation is made.

    Raises:
        ConfigError: the observations are of a kind that cannot be used, or lack an entry that the task names.
    """
    space = env.observation_space
    if isinstance(space, Dict) and not task.observation:
        raise ConfigError(
            f"{task.name}: observations of {task.env_id} are dictionaries; say which entries are joined, and in which order: "
            f"observation = {names_of_entries(space)}"
        )
    found = []
    for key in task.observation or ("",):
        entry: Space[Any] | None = space
        for part in key.split("/") if key else ():
            entry = entry.spaces.get(part) if isinstance(entry, Dict) else None
        if entry is None:
            there = names_of_entries(space) if isinstance(space, Dict) else f"it is {space}"
            raise ConfigError(f"{task.name}: observations of {task.env_id} have no entry {key!r}; there are {there}")
        found.append(usable_box(task, entry, f"the observation {key!r}" if key else "the observation"))
    return found


def names_of_entries(space: Dict, before: str = "") -> list[str]:
    """The names of all entries of a dictionary space that are no dictionaries, as `TaskSpec.observation` has them."""
    names = []
    for key, entry in space.spaces.items():
        names += names_of_entries(entry, f"{before}{key}/") if isinstance(entry, Dict) else [f"{before}{key}"]
    return names


def usable_box(task: TaskSpec, space: Space[Any], what: str) -> Box:
    """`space`, if it is a box of numbers.

    Raises:
        ConfigError: it is another space, or holds images.
    """
    if not isinstance(space, Box):
        raise ConfigError(
            f"{task.name}: {what} of {task.env_id} is {type(space).__name__}; only boxes of numbers can be used, and "
            "dictionaries of them as observations"
        )
    if len(space.shape) > 1 and np.issubdtype(space.dtype, np.unsignedinteger):
        raise ConfigError(
            f"{task.name}: {what} of {task.env_id} is an image, {space.shape} {space.dtype}; images cannot be used"
        )
    return space


def checked_actions(task: TaskSpec, space: Space[Any]) -> Box:
    """The environment's actions, if they fit the task: as many entries, and bounds that hold those of the task.

    Raises:
        ConfigError: they do not.
    """
    box = usable_box(task, space, "the action")
    if int(np.prod(box.shape)) != task.act_dim:
        raise ConfigError(f"{task.name}: act_dim is {task.act_dim}, but actions of {task.env_id} have shape {box.shape}")
    low, high = np.array(task.action_bounds)
    if (low < box.low.reshape(-1) - 1e-6).any() or (high > box.high.reshape(-1) + 1e-6).any():
        raise ConfigError(
            f"{task.name}: actions of {task.env_id} lie in {box.low.reshape(-1).tolist()} … {box.high.reshape(-1).tolist()}, "
            f"those of the task in {low.tolist()} … {high.tolist()}; set action_low and action_high"
        )
    if task.action_low is None and not (np.isclose(box.low, -1.0).all() and np.isclose(box.high, 1.0).all()):
        raise ConfigError(
            f"{task.name}: actions of {task.env_id} lie in {box.low.reshape(-1).tolist()} … {box.high.reshape(-1).tolist()}; "
            "say with action_low and action_high which of them -1 and 1 are to mean"
        )
    return box
