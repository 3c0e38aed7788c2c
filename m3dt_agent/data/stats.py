"""What a model needs to know about a task besides its weights: observation statistics, return scale, target return.

    normalized = clip((state - mean) / std, ± state_clip)

mean and std are over all observations in which an action was taken. A std under `DataConfig.std_floor` means that the dimension
is constant in the data. Dividing by it would blow up the smallest difference at test time, so it is replaced by `constant_std`.
The target return is the mean return of the task's prompt episodes, or the published one (docs/architecture.md#data).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import DataConfig
from ..errors import BankError, ConfigError, InvalidValueError
from .limits import LARGEST_RETURN, LARGEST_VALUE, SMALLEST_SCALE

if TYPE_CHECKING:
    from .task_datasets import TaskDatasets

_LAYOUTS = ("one number", "a vector of numbers")
_FIELDS = ("mean", "std", "return_scale", "target_return", "state_clip")


@dataclass(frozen=True, slots=True, eq=False)
class TaskStatistics:
    """Observation statistics and return constants of one task.

    mean, std: (obs_dim,) float32.
    return_scale: the model sees returns-to-go divided by this.
    target_return: the undiscounted return that the agent asks for, not divided by `return_scale`.
    state_clip: normalized states are clipped to ± this; None: they are not clipped.

    Raises:
        InvalidValueError: mean and std have different shapes, std, return_scale or state_clip is not positive, or a value other
            than state_clip is not finite or leaves the bounds of `limits`, so that a normalized number could leave float32.
    """

    mean: NDArray[np.float32]  # (obs_dim,)
    std: NDArray[np.float32]  # (obs_dim,)
    return_scale: float
    target_return: float
    state_clip: float | None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise InvalidValueError(f"statistics need mean and std (obs_dim,); got {self.mean.shape} and {self.std.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise InvalidValueError("statistics need a finite mean and a finite, positive std in every dimension")
        if np.abs(self.mean).max(initial=0) > LARGEST_VALUE or self.std.min(initial=1) < SMALLEST_SCALE:
            got = f"got {np.abs(self.mean).max():g} and {self.std.min():g}"
            raise InvalidValueError(f"statistics need a mean of at most {LARGEST_VALUE:g}, a std of {SMALLEST_SCALE:g}; {got}")
        if not (math.isfinite(self.return_scale) and self.return_scale > 0 and math.isfinite(self.target_return)):
            got = f"got {self.return_scale!r} and {self.target_return!r}"
            raise InvalidValueError(f"statistics need return_scale > 0 and a finite target_return; {got}")
        if self.return_scale < SMALLEST_SCALE or abs(self.target_return) > LARGEST_RETURN:
            got = f"got {self.return_scale!r} and {self.target_return!r}"
            raise InvalidValueError(
                f"statistics need return_scale >= {SMALLEST_SCALE:g} and a target_return of at most {LARGEST_RETURN:g}; {got}"
            )
        if self.state_clip is not None and not self.state_clip > 0:
            raise InvalidValueError(f"state_clip must be None or > 0; got {self.state_clip!r}")

    def normalize(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalizes and clips states (..., obs_dim); returns float32 of the same shape."""
        limit = np.float32(np.inf if self.state_clip is None else self.state_clip)
        scaled: NDArray[np.float32] = (np.asarray(states, np.float32) - self.mean) / self.std
        np.clip(scaled, -limit, limit, out=scaled)
        return scaled


def compute_statistics(data: TaskDatasets) -> dict[str, TaskStatistics]:
    """Task name → statistics of every task of `data`, computed as `data.config` says.

    Raises:
        ConfigError: published target returns are asked for, and a task has none.
    """
    return {task.name: _task_statistics(data, i) for i, task in enumerate(data.tasks)}


def _task_statistics(data: TaskDatasets, i: int) -> TaskStatistics:
    task, packed, config = data.tasks[i], data.packed[i], data.config
    if config.target_return == "data":
        target_return = float(packed.returns[data.prompt_episodes(i)].mean())
    elif task.target_return is not None:
        target_return = task.target_return
    else:
        raise ConfigError(f"task {task.name!r} has no published target return; use DataConfig(target_return='data')")
    return TaskStatistics(
        mean=packed.obs_mean.astype(np.float32),
        std=_floored(packed.obs_std, config).astype(np.float32),
        return_scale=task.return_scale,
        target_return=target_return,
        state_clip=config.state_clip,
    )


def _floored(std: NDArray[np.float64], config: DataConfig) -> NDArray[np.float64]:
    replacement = config.std_floor if config.constant_std is None else config.constant_std
    return np.where(std < config.std_floor, replacement, std)


def statistics_to_tensors(statistics: Mapping[str, TaskStatistics]) -> dict[str, Tensor]:
    """Tensors named `<task>/<field>`: mean and std float32, the others float64 scalars; state_clip None becomes inf."""
    tensors: dict[str, Tensor] = {}
    for task, s in statistics.items():
        clip = math.inf if s.state_clip is None else s.state_clip
        tensors |= {f"{task}/mean": torch.from_numpy(s.mean.copy()), f"{task}/std": torch.from_numpy(s.std.copy())}
        scalars = {"return_scale": s.return_scale, "target_return": s.target_return, "state_clip": clip}
        tensors |= {f"{task}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}
    return tensors


def statistics_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, TaskStatistics]:
    """The inverse of `statistics_to_tensors`.

    Raises:
        BankError: a tensor is missing, unknown or of another shape or type; the message names it.
        InvalidValueError: the values are out of range (see `TaskStatistics`).
    """
    names = list(dict.fromkeys(key.rpartition("/")[0] for key in tensors))
    expected = {f"{task}/{field}" for task in names for field in _FIELDS}
    if expected != set(tensors):
        missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise BankError(f"statistics: missing tensors {missing}, unknown tensors {unknown}")
    found = {task: {field: tensors[f"{task}/{field}"] for field in _FIELDS} for task in names}
    for task, fields in found.items():
        _require_layout(task, fields)
    return {task: _from_tensors(fields) for task, fields in found.items()}


def _require_layout(task: str, fields: Mapping[str, Tensor]) -> None:
    for name, tensor in fields.items():
        vector = name in ("mean", "std")
        if not tensor.is_floating_point() or (tensor.ndim != 1 if vector else tensor.numel() != 1):
            raise BankError(f"statistics: {task}/{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be {_LAYOUTS[vector]}")


def _from_tensors(fields: Mapping[str, Tensor]) -> TaskStatistics:
    clip = float(fields["state_clip"])
    return TaskStatistics(
        mean=fields["mean"].to(torch.float32).numpy().copy(),
        std=fields["std"].to(torch.float32).numpy().copy(),
        return_scale=float(fields["return_scale"]),
        target_return=float(fields["target_return"]),
        state_clip=None if math.isinf(clip) else clip,
    )
