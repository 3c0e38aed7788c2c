"""The model's inputs: windows of steps, prompts (which have the same fields), and batches of both.

Shape legend: B windows in a batch, T steps in a window (`context_length`, or `prompt_length` for a prompt).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Window:
    """T consecutive steps of B episodes, left-padded; a prompt has the same fields.

    States are normalized per task, states and actions zero-padded to the model's widths, returns-to-go divided by the task's
    return scale. `mask` is True on real steps; padded steps hold zeros.
    """

    states: Tensor  # (B, T, state_dim) float
    actions: Tensor  # (B, T, act_dim) float
    returns_to_go: Tensor  # (B, T, 1) float
    timesteps: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Window:
        """The same windows on `device`, with the floating-point fields as `dtype`."""
        return Window(
            self.states.to(device, dtype),
            self.actions.to(device, dtype),
            self.returns_to_go.to(device, dtype),
            self.timesteps.to(device),
            self.mask.to(device),
        )

    def part(self, windows: range) -> Window:
        """Some consecutive windows, as views of the same memory."""
        at = slice(windows.start, windows.stop)
        return Window(self.states[at], self.actions[at], self.returns_to_go[at], self.timesteps[at], self.mask[at])

    def to_arrays(self) -> WindowArrays:
        """The same memory as arrays; the fields must be float32 and on the CPU."""
        return WindowArrays(
            self.states.numpy(),
            self.actions.numpy(),
            self.returns_to_go.numpy(),
            self.timesteps.numpy(),
            self.mask.numpy(),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one training step: B windows, with a prompt each."""

    tasks: Tensor  # (B,) int64, index into the datasets' tasks
    window: Window
    prompt: Window
    action_mask: Tensor  # (B, T, act_dim) bool: what the loss is over, the task's own action entries in real steps
    labels: Tensor | None = None  # (B, T, act_dim) the demonstrators' own actions; None: those of the windows
    prompt_ids: Tensor | None = None  # (B,) int64: equal ids are equal prompts; None: it is not known which are

    @property
    def targets(self) -> Tensor:
        """What the model is to predict, (B, T, act_dim)."""
        return self.window.actions if self.labels is None else self.labels

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`, with the floating-point fields as `dtype`."""
        return Batch(
            self.tasks.to(device),
            self.window.to(device, dtype),
            self.prompt.to(device, dtype),
            self.action_mask.to(device),
            None if self.labels is None else self.labels.to(device, dtype),
            self.prompt_ids,
        )

    def part(self, windows: range) -> Batch:
        """Some consecutive windows and their prompts, as views of the same memory."""
        at = slice(windows.start, windows.stop)
        labels = None if self.labels is None else self.labels[at]
        ids = None if self.prompt_ids is None else self.prompt_ids[at]
        return Batch(self.tasks[at], self.window.part(windows), self.prompt.part(windows), self.action_mask[at], labels, ids)


@dataclass(frozen=True, slots=True, eq=False)
class WindowArrays:
    """Windows as NumPy arrays, to be filled or copied from. Shapes are as in `Window`; floats are float32."""

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    returns_to_go: NDArray[np.float32]
    timesteps: NDArray[np.int64]
    mask: NDArray[np.bool_]

    def take(self, windows: NDArray[np.int64]) -> WindowArrays:
        """Copies the windows at the given indices (B,); for few windows this is faster than indexing a `Window`'s tensors."""
        return WindowArrays(
            self.states.take(windows, axis=0),
            self.actions.take(windows, axis=0),
            self.returns_to_go.take(windows, axis=0),
            self.timesteps.take(windows, axis=0),
            self.mask.take(windows, axis=0),
        )

    def to_window(self) -> Window:
        """The same memory as tensors."""
        return Window(
            torch.from_numpy(self.states),
            torch.from_numpy(self.actions),
            torch.from_numpy(self.returns_to_go),
            torch.from_numpy(self.timesteps),
            torch.from_numpy(self.mask),
        )


def empty_window(count: int, length: int, config: ModelConfig) -> WindowArrays:
    """B = `count` windows of T = `length` padded steps: zeros, mask False."""
    return WindowArrays(
        states=np.zeros((count, length, config.state_dim), np.float32),
        actions=np.zeros((count, length, config.act_dim), np.float32),
        returns_to_go=np.zeros((count, length, 1), np.float32),
        timesteps=np.zeros((count, length), np.int64),
        mask=np.zeros((count, length), np.bool_),
    )
