"""What the model sees: windows, prompts (the same fields), and batches of both.

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
        """The same window on `device`, its floating-point fields as `dtype`."""
        return Window(
            self.states.to(device, dtype),
            self.actions.to(device, dtype),
            self.returns_to_go.to(device, dtype),
            self.timesteps.to(device),
            self.mask.to(device),
        )

    def rows(self, rows: range) -> Window:
        """Consecutive windows, the same memory."""
        at = slice(rows.start, rows.stop)
        return Window(self.states[at], self.actions[at], self.returns_to_go[at], self.timesteps[at], self.mask[at])

    def to_arrays(self) -> WindowArrays:
        """The same memory as arrays; for windows of float32 on the CPU."""
        return WindowArrays(
            self.states.numpy(),
            self.actions.numpy(),
            self.returns_to_go.numpy(),
            self.timesteps.numpy(),
            self.mask.numpy(),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step sees."""

    tasks: Tensor  # (B,) int64, index into the datasets' tasks
    window: Window
    prompt: Window
    action_mask: Tensor  # (B, T, act_dim) bool: real steps' real action dimensions, the only ones in the loss

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`, its floating-point fields as `dtype`."""
        return Batch(
            self.tasks.to(device), self.window.to(device, dtype), self.prompt.to(device, dtype), self.action_mask.to(device)
        )

    def rows(self, rows: range) -> Batch:
        """Consecutive windows and their prompts, the same memory."""
        at = slice(rows.start, rows.stop)
        return Batch(self.tasks[at], self.window.rows(rows), self.prompt.rows(rows), self.action_mask[at])


@dataclass(frozen=True, slots=True, eq=False)
class WindowArrays:
    """A window in NumPy, while it is being filled or to copy rows from; shapes as in `Window`, floats are float32."""

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    returns_to_go: NDArray[np.float32]
    timesteps: NDArray[np.int64]
    mask: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> WindowArrays:
        """A copy of the given rows, (B,); for few rows this is much quicker than indexing a `Window`'s tensors."""
        return WindowArrays(
            self.states.take(rows, axis=0),
            self.actions.take(rows, axis=0),
            self.returns_to_go.take(rows, axis=0),
            self.timesteps.take(rows, axis=0),
            self.mask.take(rows, axis=0),
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


def empty_window(rows: int, length: int, config: ModelConfig) -> WindowArrays:
    """B = `rows` windows of T = `length` padded steps: zeros, mask False."""
    return WindowArrays(
        np.zeros((rows, length, config.state_dim), np.float32),
        np.zeros((rows, length, config.act_dim), np.float32),
        np.zeros((rows, length, 1), np.float32),
        np.zeros((rows, length), np.int64),
        np.zeros((rows, length), np.bool_),
    )
