"""`History`: what an agent remembers of each of N slots, the last T = `context_length` steps.

             oldest                    now          every act appends one step on the right; the first act of an
states       · · · · s₀ s₁ s₂ … sₜ₋₁  sₜ            episode empties the slot (·: padding, all zeros, mask False)
actions      · · · · a₀ a₁ a₂ … aₜ₋₁  0             the current action is 0 until `record` fills it in
timesteps    0 0 0 0 0  1  2  … t-1   t             they count up to `max_timesteps` - 1 and stay there
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data.windows import Window
from .conditions import Condition

Rows = slice | Tensor
"""Every slot, or the (n,) int64 indices of some."""


class History:
    """The last steps of N slots, as tensors on the model's device.

    conditions: one per slot. dtype: of the windows; returns-to-go are always summed in float64.
    Attributes: `slots` (N), `pending`, `state_mask`.
    """

    def __init__(self, conditions: Sequence[Condition], config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        N, T = len(conditions), config.context_length
        self.slots = N
        self.pending = np.ones(N, bool)  # (N,) the slots whose next step opens an episode
        self._last_timestep = config.max_timesteps - 1
        self._set_constants(conditions, config, device, dtype)
        self._states = torch.zeros(N, T, config.state_dim, device=device, dtype=dtype)
        self._actions = torch.zeros(N, T, config.act_dim, device=device, dtype=dtype)
        self._returns_to_go = torch.zeros(N, T, 1, device=device, dtype=dtype)
        self._timesteps = torch.zeros(N, T, device=device, dtype=torch.int64)
        self._mask = torch.zeros(N, T, device=device, dtype=torch.bool)
        self._return_to_go = self._target.clone()  # (N,) float64, of the current step
        self._timestep = torch.zeros(N, device=device, dtype=torch.int64)

    def _set_constants(
        self, conditions: Sequence[Condition], config: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        N = len(conditions)
        mean, std = np.zeros((N, config.state_dim), np.float32), np.ones((N, config.state_dim), np.float32)
        state_mask, action_mask = np.zeros((N, config.state_dim), bool), np.zeros((N, config.act_dim), bool)
        clip = np.full((N, 1), np.inf, np.float32)
        for i, condition in enumerate(conditions):
            s = condition.statistics
            mean[i, : condition.obs_dim], std[i, : condition.obs_dim] = s.mean, s.std
            state_mask[i, : condition.obs_dim], action_mask[i, : condition.act_dim] = True, True
            clip[i] = np.inf if s.state_clip is None else s.state_clip
        self.state_mask = state_mask  # (N, D_s) the observation dimensions that a slot's task has
        self._mean, self._std, self._clip = (torch.from_numpy(a).to(device, dtype) for a in (mean, std, clip))
        self._state_mask, self._action_mask = torch.from_numpy(state_mask).to(device), torch.from_numpy(action_mask).to(device)
        scale = np.array([condition.statistics.return_scale for condition in conditions], np.float64)
        target = np.array([condition.target_return for condition in conditions], np.float64)
        self._scale, self._target = torch.from_numpy(scale).to(device), torch.from_numpy(target / scale).to(device)

    def observe(self, rows: Rows, observations: Tensor, rewards: Tensor, starts: Tensor) -> Window:
        """Appends one step to the slots `rows` and returns their windows, (n, T).

        Args:
            observations: (n, D_s), not normalized, zero-padded. rewards: (n,) float64, earned by the step before.
            starts: (n,) bool, the slots whose episode this step opens; their history is emptied and their reward ignored.
        """
        states = ((observations - self._mean[rows]) / self._std[rows]).clamp(-self._clip[rows], self._clip[rows])
        states = torch.where(self._state_mask[rows], states, 0.0)
        later = self._return_to_go[rows] - rewards / self._scale[rows]
        return_to_go = self._return_to_go[rows] = torch.where(starts, self._target[rows], later)
        timestep = self._timestep[rows] = torch.where(starts, 0, self._timestep[rows] + 1)
        kept = ~starts
        self._append(self._states, rows, states, kept)
        self._append(self._actions, rows, torch.zeros_like(self._actions[rows][:, 0]), kept)
        self._append(self._returns_to_go, rows, return_to_go.to(self._returns_to_go.dtype)[:, None], kept)
        self._append(self._timesteps, rows, timestep.clamp(max=self._last_timestep), kept)
        self._append(self._mask, rows, torch.ones_like(starts), kept)
        return Window(
            self._states[rows], self._actions[rows], self._returns_to_go[rows], self._timesteps[rows], self._mask[rows]
        )

    def record(self, rows: Rows, actions: Tensor) -> Tensor:
        """Stores the current step's actions (n, D_a) and returns them as taken: float32 in [-1, 1], padding exactly 0."""
        taken = torch.where(self._action_mask[rows], actions.float().clamp(-1.0, 1.0), 0.0)
        self._actions[rows, -1] = taken.to(self._actions.dtype)
        return taken

    @staticmethod
    def _append(buffer: Tensor, rows: Rows, step: Tensor, kept: Tensor) -> None:
        past = buffer[rows][:, 1:]  # (n, T-1, ...)
        buffer[rows] = torch.cat([past * kept.view(-1, *[1] * (past.ndim - 1)), step[:, None]], dim=1)
