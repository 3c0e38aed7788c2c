"""`History`: what an agent remembers of each of N slots, the last T = `context_length` steps.

             oldest                    now          every act appends one step on the right; the first act of an
states       · · · · s₀ s₁ s₂ … sₜ₋₁  sₜ            episode empties the slot (·: padding, all zeros, mask False)
actions      · · · · a₀ a₁ a₂ … aₜ₋₁  0             the current action is 0 until `record` fills it in
timesteps    0 0 0 0 0  1  2  … t-1   t             they count up to `max_timesteps` - 1 and stay there

`observe` makes the windows with one more step and `record` stores them, so that a step that fails in between leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data.windows import Window
from .conditions import Condition
from .inputs import Bools, Float32Array, Float64Array


@dataclass(frozen=True, slots=True)
class Slots:
    """The n of N slots that act now, as a mask of arrays and as an index of tensors on the model's device."""

    mask: Bools  # (N,)
    index: slice | Tensor  # all of them, or (n,) int64

    @classmethod
    def of(cls, mask: Bools, device: torch.device) -> Slots:
        """The slots where `mask` (N,) is True."""
        return cls(mask, slice(None) if mask.all() else torch.from_numpy(np.flatnonzero(mask)).to(device))


@dataclass(frozen=True, slots=True)
class Step:
    """One more step of n slots, not yet stored: their windows, and what the next step starts from."""

    window: Window  # (n, T)
    returns_to_go: Float64Array  # (n,)
    timesteps: Tensor  # (n,) int64, counted on beyond `max_timesteps`


@dataclass(frozen=True, slots=True)
class Constants:
    """What N conditions say of observations and actions."""

    mean: Tensor  # (N, D_s)
    std: Tensor  # (N, D_s)
    clip: Tensor  # (N, 1)
    state_mask: Tensor  # (N, D_s) bool: the dimensions that the task has
    action_mask: Tensor  # (N, D_a) bool

    @classmethod
    def of(cls, conditions: Sequence[Condition], config: ModelConfig) -> Constants:
        """Those of N conditions, zero-padded to the model's widths, in float32 on the CPU."""
        N = len(conditions)
        mean, std = np.zeros((N, config.state_dim), np.float32), np.ones((N, config.state_dim), np.float32)
        state_mask, action_mask = np.zeros((N, config.state_dim), bool), np.zeros((N, config.act_dim), bool)
        clip = np.full((N, 1), np.inf, np.float32)
        for i, condition in enumerate(conditions):
            s = condition.statistics
            mean[i, : condition.obs_dim], std[i, : condition.obs_dim] = s.mean, s.std
            state_mask[i, : condition.obs_dim], action_mask[i, : condition.act_dim] = True, True
            clip[i] = np.inf if s.state_clip is None else s.state_clip
        return cls(*map(torch.from_numpy, (mean, std, clip, state_mask, action_mask)))

    def to(self, device: torch.device, dtype: torch.dtype) -> Constants:
        """The same on `device`, with the numbers as `dtype`."""
        mean, std, clip = (tensor.to(device, dtype) for tensor in (self.mean, self.std, self.clip))
        return Constants(mean, std, clip, self.state_mask.to(device), self.action_mask.to(device))

    def normalized(self, observations: Tensor, at: slice | Tensor) -> Tensor:
        """Observations (n, D_s) of the conditions `at` as the model sees them: normalized and clipped, padding exactly 0."""
        clip = self.clip[at]
        return torch.where(self.state_mask[at], ((observations - self.mean[at]) / self.std[at]).clamp(-clip, clip), 0.0)

    def taken(self, actions: Tensor, at: slice | Tensor) -> Tensor:
        """Actions (n, D_a) of the model as they are taken: float32 in [-1, 1], padding exactly 0."""
        return torch.where(self.action_mask[at], actions.float().clamp(-1.0, 1.0), 0.0)


class History:
    """The last steps of N slots: tensors on the model's device, and the returns-to-go.

    The returns-to-go are float64 and stay on the CPU, since not every device has float64 (Apple's GPU does not).

    conditions: one per slot. dtype: of the windows.
    Attributes: `pending`, `state_mask`.
    """

    def __init__(self, conditions: Sequence[Condition], config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        N, T = len(conditions), config.context_length
        self.pending = np.ones(N, bool)  # (N,) the slots whose next step opens an episode
        self._device, self._dtype = device, dtype
        self._last_timestep = config.max_timesteps - 1
        constants = Constants.of(conditions, config)
        self.state_mask = constants.state_mask.numpy()  # (N, D_s) the observation dimensions that a slot's task has
        self._constants = constants.to(device, dtype)
        self._scale = np.array([condition.statistics.return_scale for condition in conditions], np.float64)
        self._target = np.array([condition.target_return for condition in conditions], np.float64) / self._scale
        self._window = Window(
            torch.zeros(N, T, config.state_dim, device=device, dtype=dtype),
            torch.zeros(N, T, config.act_dim, device=device, dtype=dtype),
            torch.zeros(N, T, 1, device=device, dtype=dtype),
            torch.zeros(N, T, device=device, dtype=torch.int64),
            torch.zeros(N, T, device=device, dtype=torch.bool),
        )
        self._returns_to_go = self._target.copy()  # (N,) float64, of the current step
        self._timesteps = torch.zeros(N, device=device, dtype=torch.int64)  # (N,)

    def returns_to_go(self, slots: Slots, rewards: Float64Array, starts: Bools) -> Float64Array:
        """What remains of the target returns of n slots after `rewards` (n,), divided by their scales, (n,); may be infinite.

        starts: (n,), the slots whose episode begins; their rewards are ignored.
        """
        mask = slots.mask
        with np.errstate(over="ignore"):
            return np.where(starts, self._target[mask], self._returns_to_go[mask] - rewards / self._scale[mask])

    def observe(self, slots: Slots, observations: Float32Array, returns_to_go: Float64Array, starts: Bools) -> Step:
        """The windows of n slots with one more step, which is not stored yet.

        Args:
            observations: (n, D_s), not normalized, zero-padded. returns_to_go: (n,), of this step.
            starts: (n,), the slots whose episode this step opens; their windows hold nothing else.
        """
        at, first = slots.index, torch.from_numpy(starts).to(self._device)
        states = self._constants.normalized(torch.from_numpy(observations).to(self._device, self._dtype), at)
        steps = torch.where(first, 0, self._timesteps[at] + 1)
        shown = (
            torch.from_numpy(returns_to_go[:, None]).to(self._dtype).to(self._device)
        )  # never float64 there unless the model is
        new = (
            states,
            states.new_zeros(len(states), self._window.actions.shape[-1]),
            shown.to(self._device),
            steps.clamp(max=self._last_timestep),
            torch.ones_like(first),
        )
        kept = ~first
        past = [getattr(self._window, field.name)[at][:, 1:] for field in fields(Window)]  # (n, T - 1, ...) each
        return Step(Window(*(_appended(a, b, kept) for a, b in zip(past, new, strict=True))), returns_to_go, steps)

    def taken(self, slots: Slots, actions: Tensor) -> Tensor:
        """Actions (n, D_a) of the model as they are taken: float32 in [-1, 1], padding exactly 0."""
        return self._constants.taken(actions, slots.index)

    def record(self, slots: Slots, step: Step, taken: Tensor) -> None:
        """Stores a step of n slots with the actions (n, D_a) that were taken in it."""
        step.window.actions[:, -1] = taken.to(self._dtype)
        self._returns_to_go[slots.mask] = step.returns_to_go
        if isinstance(slots.index, slice):
            self._window, self._timesteps = step.window, step.timesteps
            return
        self._timesteps[slots.index] = step.timesteps
        for field in fields(Window):
            getattr(self._window, field.name)[slots.index] = getattr(step.window, field.name)


def _appended(past: Tensor, step: Tensor, kept: Tensor) -> Tensor:
    """Past steps (n, T - 1, ...), or zeros where `kept` (n,) is False, followed by one more step (n, ...)."""
    return torch.cat([past * kept.view(-1, *[1] * (past.ndim - 1)), step[:, None]], dim=1)
