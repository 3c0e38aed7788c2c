"""Prompts: the last steps of a task's best episodes, which tell the model what task it is in.

A prompt is the last `prompt_length` steps of one prompt episode, with that episode's own timesteps and returns-to-go, kept
raw. It becomes a model input (normalized, scaled, zero-padded on the left and to the model's widths) in `prompt_window`:

    episode   0 1 2 … 495 496 497 498 499          prompt_length 5: steps 495 … 499, timesteps 495 … 499
    short     0 1 2                                 window row:  · · 0 1 2    (· is padding, mask False)

Training draws one of a task's prompts per window; `act` uses the first, the best (DESIGN section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ModelConfig
from ..errors import BankError, ShapeError
from .stats import TaskStatistics
from .windows import Window, WindowArrays, empty_window

if TYPE_CHECKING:
    from .task_datasets import TaskDatasets


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """P consecutive steps of one episode, raw: not normalized, not scaled, not padded.

    Raises:
        ShapeError: no steps at all, or fields of different lengths.
    """

    states: NDArray[np.float32]  # (P, obs_dim)
    actions: NDArray[np.float32]  # (P, act_dim)
    returns_to_go: NDArray[np.float32]  # (P,) undiscounted, unscaled
    timesteps: NDArray[np.int64]  # (P,) in the episode, from 0

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        lengths = {shape[0] if shape else 0 for shape in shapes.values()}
        widths = {name: len(shape) for name, shape in shapes.items()}
        if len(lengths) != 1 or 0 in lengths or widths != {"states": 2, "actions": 2, "returns_to_go": 1, "timesteps": 1}:
            raise ShapeError(f"a prompt needs (P, obs_dim), (P, act_dim), (P,), (P,) with P >= 1; got {shapes}")


def make_prompts(data: TaskDatasets, prompt_length: int) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of every task of `data`, by task name, best episode first."""
    return {
        task.name: tuple(_cut(data, i, episode, prompt_length) for episode in data.prompt_episodes(i))
        for i, task in enumerate(data.tasks)
    }


def _cut(data: TaskDatasets, i: int, episode: int, prompt_length: int) -> Prompt:
    packed = data.packed[i]
    begin, end = (int(offset) for offset in packed.offsets[episode : episode + 2])
    first = max(begin, end - prompt_length)
    rows = np.frombuffer(packed.read(first, end - first, end - first), np.float32).reshape(end - first, -1)
    obs_dim = packed.task.obs_dim
    return Prompt(
        rows[:, :obs_dim].copy(),
        rows[:, obs_dim:-1].copy(),
        rows[:, -1].copy(),
        np.arange(first - begin, end - begin, dtype=np.int64),
    )


def prompt_window(prompts: Sequence[Prompt], statistics: Sequence[TaskStatistics], config: ModelConfig) -> Window:
    """One row per prompt, T = `config.prompt_length`: left-padded, normalized, scaled, zero-padded to the model's widths.

    Raises:
        ShapeError: a prompt longer than prompt_length, wider than the model, or not as wide as its statistics; or a different
            number of prompts and statistics.
    """
    if len(prompts) != len(statistics):
        raise ShapeError(f"{len(prompts)} prompts with {len(statistics)} statistics; one of each per row")
    arrays = empty_window(len(prompts), config.prompt_length, config)
    for row, (prompt, task_statistics) in enumerate(zip(prompts, statistics, strict=True)):
        _check(prompt, task_statistics, config)
        _fill(arrays, row, prompt, task_statistics)
    return arrays.to_window()


def _check(prompt: Prompt, statistics: TaskStatistics, config: ModelConfig) -> None:
    length, obs_dim = prompt.states.shape
    act_dim = prompt.actions.shape[1]
    if length > config.prompt_length:
        raise ShapeError(f"a prompt of {length} steps; the model takes at most prompt_length={config.prompt_length}")
    if obs_dim != len(statistics.mean):
        raise ShapeError(f"a prompt with states {obs_dim} wide and statistics {len(statistics.mean)} wide")
    if obs_dim > config.state_dim or act_dim > config.act_dim:
        raise ShapeError(f"a prompt {obs_dim} + {act_dim} wide; the model takes at most {config.state_dim} + {config.act_dim}")
    if prompt.timesteps.min() < 0 or prompt.timesteps.max() >= config.max_timesteps:
        raise ShapeError(f"a prompt's timesteps must be in [0, {config.max_timesteps}); got {prompt.timesteps.tolist()}")


def _fill(arrays: WindowArrays, row: int, prompt: Prompt, statistics: TaskStatistics) -> None:
    length, obs_dim = prompt.states.shape
    arrays.states[row, -length:, :obs_dim] = statistics.normalize(prompt.states)
    arrays.actions[row, -length:, : prompt.actions.shape[1]] = prompt.actions
    arrays.returns_to_go[row, -length:, 0] = prompt.returns_to_go / np.float32(statistics.return_scale)
    arrays.timesteps[row, -length:] = prompt.timesteps
    arrays.mask[row, -length:] = True


def prompts_to_tensors(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Tensor]:
    """Tensors `<task>/<i>/<field>`, i = 0 the best prompt, fields as in `Prompt`."""
    return {
        f"{task}/{i}/{field.name}": torch.from_numpy(getattr(prompt, field.name).copy())
        for task, group in prompts.items()
        for i, prompt in enumerate(group)
        for field in fields(Prompt)
    }


def prompts_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Prompt, ...]]:
    """The inverse of `prompts_to_tensors`.

    Raises:
        BankError: a missing or unknown tensor, named.
        ShapeError: fields that do not fit together.
    """
    counts: dict[str, int] = {}
    for key in tensors:
        task = key.rsplit("/", 2)[0]
        counts[task] = counts.get(task, 0) + 1
    names = [field.name for field in fields(Prompt)]
    groups = {task: -(-count // len(names)) for task, count in counts.items()}
    expected = {f"{task}/{i}/{name}" for task, count in groups.items() for i in range(count) for name in names}
    if expected != set(tensors):
        missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise BankError(f"prompts: missing tensors {missing}, unknown tensors {unknown}")
    return {
        task: tuple(Prompt(*(tensors[f"{task}/{i}/{name}"].numpy().copy() for name in names)) for i in range(count))
        for task, count in groups.items()
    }
