"""Makes prompts: the last steps of a task's best episodes, which tell the model what task it is in.

A prompt is the last `prompt_length` steps of a prompt episode, with the timesteps and returns-to-go of that episode. It is kept
raw. `prompt_window` makes it a model input: normalized, scaled, and zero-padded on the left and to the model's widths.

    episode   0 1 2 … 495 496 497 498 499          prompt_length 5: steps 495 … 499, timesteps 495 … 499
    short     0 1 2                                 as a window: · · 0 1 2    (· is padding, mask False)

Training draws one of a task's prompts for each window; `act` uses the first, which is of the best episode
(docs/architecture.md#data).
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
from ..errors import BankError, InvalidValueError, ShapeError
from .limits import LARGEST_RETURN, LARGEST_VALUE
from .stats import TaskStatistics
from .windows import Window, WindowArrays, empty_window

if TYPE_CHECKING:
    from .task_datasets import TaskDatasets


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """P consecutive steps of one episode: not normalized, not scaled, not padded.

    Raises:
        ShapeError: there are no steps, or the fields have different lengths or the wrong number of dimensions.
        InvalidValueError: a number is not finite, or leaves the bounds of `limits`.
    """

    states: NDArray[np.float32]  # (P, obs_dim)
    actions: NDArray[np.float32]  # (P, act_dim)
    returns_to_go: NDArray[np.float32]  # (P,) undiscounted, unscaled
    timesteps: NDArray[np.int64]  # (P,) counted from the episode's start

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        lengths = {shape[0] if shape else 0 for shape in shapes.values()}
        widths = {name: len(shape) for name, shape in shapes.items()}
        if len(lengths) != 1 or 0 in lengths or widths != {"states": 2, "actions": 2, "returns_to_go": 1, "timesteps": 1}:
            raise ShapeError(f"a prompt needs (P, obs_dim), (P, act_dim), (P,), (P,) with P >= 1; got {shapes}")
        for name, limit in (("states", LARGEST_VALUE), ("actions", LARGEST_VALUE), ("returns_to_go", LARGEST_RETURN)):
            largest = np.abs(getattr(self, name)).max(initial=0)  # NaN if one of the numbers is
            if not largest <= limit:
                raise InvalidValueError(f"a prompt needs finite {name} of at most {limit:g}; got {largest:g}")


def make_prompts(data: TaskDatasets, prompt_length: int) -> dict[str, tuple[Prompt, ...]]:
    """Task name → prompts of every task of `data`, best episode first."""
    return {
        task.name: tuple(_cut(data, i, episode, prompt_length) for episode in data.prompt_episodes(i))
        for i, task in enumerate(data.tasks)
    }


def _cut(data: TaskDatasets, i: int, episode: int, prompt_length: int) -> Prompt:
    packed = data.packed[i]
    begin, end = (int(offset) for offset in packed.offsets[episode : episode + 2])
    first = max(begin, end - prompt_length)
    steps = np.frombuffer(packed.read(first, end - first, end - first), np.float32).reshape(end - first, -1)
    obs_dim, act_dim = packed.task.obs_dim, packed.task.act_dim
    return Prompt(
        states=steps[:, :obs_dim].copy(),
        actions=steps[:, obs_dim : obs_dim + act_dim].copy(),
        returns_to_go=steps[:, -1].copy(),
        timesteps=np.arange(first - begin, end - begin, dtype=np.int64),
    )


def prompt_window(prompts: Sequence[Prompt], statistics: Sequence[TaskStatistics], config: ModelConfig) -> Window:
    """One window per prompt, T = `config.prompt_length`: left-padded, normalized, scaled, zero-padded to the model's widths.

    statistics: those of each prompt's task.

    Raises:
        ShapeError: a prompt is longer than prompt_length, wider than the model, or not as wide as its statistics; its timesteps
            do not fit the model; or there are not as many statistics as prompts.
    """
    if len(prompts) != len(statistics):
        raise ShapeError(f"{len(prompts)} prompts with {len(statistics)} statistics; each prompt needs those of its task")
    arrays = empty_window(len(prompts), config.prompt_length, config)
    for i, (prompt, task_statistics) in enumerate(zip(prompts, statistics, strict=True)):
        _check(prompt, task_statistics, config)
        _fill(arrays, i, prompt, task_statistics)
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


def _fill(arrays: WindowArrays, i: int, prompt: Prompt, statistics: TaskStatistics) -> None:
    """Makes `prompt` the i-th of the windows."""
    length, obs_dim = prompt.states.shape
    arrays.states[i, -length:, :obs_dim] = statistics.normalize(prompt.states)
    arrays.actions[i, -length:, : prompt.actions.shape[1]] = prompt.actions
    arrays.returns_to_go[i, -length:, 0] = prompt.returns_to_go / np.float32(statistics.return_scale)
    arrays.timesteps[i, -length:] = prompt.timesteps
    arrays.mask[i, -length:] = True


def prompts_to_tensors(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Tensor]:
    """Tensors named `<task>/<i>/<field>`, where i = 0 is the best prompt and the fields are those of `Prompt`."""
    return {
        f"{task}/{i}/{field.name}": torch.from_numpy(getattr(prompt, field.name).copy())
        for task, group in prompts.items()
        for i, prompt in enumerate(group)
        for field in fields(Prompt)
    }


def prompts_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Prompt, ...]]:
    """The inverse of `prompts_to_tensors`.

    Raises:
        BankError: a tensor is missing, unknown or of another type; the message names it.
        ShapeError: the fields of a prompt do not fit together.
        InvalidValueError: a number is not finite, or out of bounds (see `Prompt`).
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
    for key, tensor in tensors.items():
        wanted = torch.int64 if key.endswith("/timesteps") else torch.float32
        if tensor.dtype != wanted:
            raise BankError(f"prompts: {key} is {tensor.dtype}; it must be {wanted}")
    return {
        task: tuple(Prompt(*(tensors[f"{task}/{i}/{name}"].numpy().copy() for name in names)) for i in range(count))
        for task, count in groups.items()
    }
