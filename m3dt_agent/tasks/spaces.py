"""Spaces of environments and datasets, and what of them a task uses: the arithmetic between their numbers and ours.

    theirs    boxes or dictionaries of boxes, any shape and dtype, actions in their own bounds
    ours      flat float32 observations (obs_dim,), actions (act_dim,) in [-1, 1]

`to_env`, `from_env` and `flat_observation` are for loops without an environment of ours, such as that of a robot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from .spec import TaskSpec

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


def fitting_spaces(task: TaskSpec, observations: Space[Any], actions: Space[Any], where: str) -> Box:
    """Checks that these spaces fit the task, and returns that of the actions. where: whose they are, for errors.

    Raises:
        ConfigError: they are of a kind that cannot be used, or have other widths, bounds or entries than the task.
    """
    width = sum(_width(box) for box in _chosen_boxes(task, observations, where))
    if width != task.obs_dim:
        raise ConfigError(f"{task.name}: obs_dim is {task.obs_dim}, but observations of {where} have {width} entries")
    box = _usable_box(task.name, actions, f"the action of {where}")
    if _width(box) != task.act_dim:
        raise ConfigError(f"{task.name}: act_dim is {task.act_dim}, but actions of {where} have shape {box.shape}")
    low, high = np.array(task.action_bounds)
    theirs = f"actions of {where} lie in {_shown(box.low)} … {_shown(box.high)}"
    if (low < box.low.reshape(-1) - 1e-6).any() or (high > box.high.reshape(-1) + 1e-6).any():
        ours = f"those of the task in {_shown(low)} … {_shown(high)}"
        raise ConfigError(f"{task.name}: {theirs}, {ours}; set action_low and action_high")
    if task.action_low is None and not (np.isclose(box.low, -1.0).all() and np.isclose(box.high, 1.0).all()):
        raise ConfigError(f"{task.name}: {theirs}; say with action_low and action_high which of them -1 and 1 are to mean")
    return box


def spec_of_spaces(observations: Space[Any], actions: Space[Any], longest: int | None, where: str, **given: Any) -> TaskSpec:
    """The spec of a task with these spaces, and episodes of at most `longest` steps. given: fields of `TaskSpec` besides.

    Raises:
        ConfigError: spaces that cannot be used, actions without bounds, episodes without end, or what `TaskSpec` refuses.
    """
    name = given.get("name", "task")
    if isinstance(observations, Dict):
        given.setdefault("observation", tuple(names_of_entries(observations)))
    draft = TaskSpec(**{**given, "obs_dim": 1, "act_dim": 1, "max_episode_steps": 1, "action_low": None, "action_high": None})
    boxes, box = _chosen_boxes(draft, observations, where), _usable_box(name, actions, f"the action of {where}")
    low, high = box.low.reshape(-1).astype(float), box.high.reshape(-1).astype(float)
    if given.get("action_low") is None and not (np.all(low == -1.0) and np.all(high == 1.0)):
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ConfigError(f"{name}: actions of {where} have no bounds; give action_low and action_high")
        given |= {"action_low": tuple(low.tolist()), "action_high": tuple(high.tolist())}
    if given.get("max_episode_steps") is None:
        if longest is None:
            raise ConfigError(f"{name}: episodes of {where} have no end; give max_episode_steps")
        given["max_episode_steps"] = longest
    task = TaskSpec(**{"obs_dim": sum(map(_width, boxes)), "act_dim": _width(box), **given})
    fitting_spaces(task, observations, actions, where)
    return task


def space_from_json(text: object, where: str) -> Space[Any]:
    """The space that a dataset's metadata describe, as Minari writes it: a box, or a dictionary of spaces.

    where: what it is, for errors, such as "the action of mujoco/ant/expert-v0".

    Raises:
        ConfigError: it is another space, or describes none.
    """
    try:
        values = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no space: {error}") from error
    return _space(values, where, 0)


def _space(values: object, where: str, depth: int) -> Space[Any]:
    kind = values.get("type") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(kind, str) or depth > _DEEPEST:
        raise ConfigError(f"{where} is no space: {values!r:.80}")
    if kind not in ("Box", "Dict"):
        raise ConfigError(f"{where} is {kind[:40]}; {_USABLE}")
    try:
        if kind == "Dict":
            inner = values["subspaces"].items()
            return Dict({str(key): _space(one, f"{where}, {key!r:.40}", depth + 1) for key, one in inner})
        shape = tuple(values["shape"])
        low, high = (np.asarray(values[key], np.float64) for key in ("low", "high"))
        if low.shape != shape or high.shape != shape or not all(type(n) is int and n > 0 for n in shape):
            raise ConfigError(f"{where} has shape {shape!s:.80}, and bounds of {low.shape} and {high.shape}")
        dtype = np.dtype(values["dtype"])
        if dtype.kind not in "fiu":
            raise ConfigError(f"{where} is a box of {dtype}; {_USABLE}")
        return Box(low.astype(dtype), high.astype(dtype), shape, dtype)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is no space: {error!r:.120}") from error


def names_of_entries(space: Dict, before: str = "") -> list[str]:
    """The names of all entries of a dictionary space that are no dictionaries, as `TaskSpec.observation` has them."""
    names = []
    for key, entry in space.spaces.items():
        names += names_of_entries(entry, f"{before}{key}/") if isinstance(entry, Dict) else [f"{before}{key}"]
    return names


def _chosen_boxes(task: TaskSpec, space: Space[Any], where: str) -> list[Box]:
    """The boxes of which the task's observation is made."""
    if isinstance(space, Dict) and not task.observation:
        raise ConfigError(
            f"{task.name}: observations of {where} are dictionaries; say which entries are joined, and in which order: "
            f"observation = {names_of_entries(space)}"
        )
    found = []
    for key in task.observation or ("",):
        entry: Space[Any] | None = space
        for part in key.split("/") if key else ():
            entry = entry.spaces.get(part) if isinstance(entry, Dict) else None
        if entry is None:
            names = ", ".join(names_of_entries(space)) if isinstance(space, Dict) else ""
            there = f"there are {names}" if names else "they are no dictionaries"
            raise ConfigError(f"{task.name}: observations of {where} have no entry {key!r}; {there}")
        found.append(
            _usable_box(task.name, entry, f"the observation {key!r} of {where}" if key else f"the observation of {where}")
        )
    return found


_USABLE = "only boxes of numbers can be used, and dictionaries of them as observations"
_DEEPEST = 8


def _usable_box(name: str, space: Space[Any], what: str) -> Box:
    """`space`, if it is a box of numbers."""
    if not isinstance(space, Box):
        raise ConfigError(f"{name}: {what} is {type(space).__name__}; {_USABLE}")
    if len(space.shape) > 1 and np.issubdtype(space.dtype, np.unsignedinteger):
        raise ConfigError(f"{name}: {what} is an image, {space.shape} {space.dtype}; images cannot be used")
    return space


def _width(box: Box) -> int:
    return int(np.prod(box.shape))


def _shown(bounds: NDArray[Any]) -> str:
    flat = bounds.reshape(-1).tolist()
    return str(flat[0]) if len(set(flat)) == 1 else str(flat)
