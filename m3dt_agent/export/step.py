"""One step of acting as a function of tensors, for `torch.export`: everything between an observation and the action.

    observation, reward, reset, task ─┐                                ┌─► action, in the environment's own bounds
    history, return_to_go, timestep ──┴─► window ──► M3DT.act ─────────┴─► history, return_to_go, timestep of this step

It calls the model, the normalization and the prompts' encoding that `M3DTAgent` uses. What `agent/acting.py` and
`agent/history.py` keep in objects between two calls is here an input and an output, because a file of tensors remembers
nothing; and their checks, which raise errors, are left out, because it cannot raise any.

Shape legend: N slots, K tasks, T context_length, D_s state_dim, D_a act_dim, H = D_s + D_a + 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..agent.choice import Experts
from ..agent.conditions import Condition
from ..agent.history import Constants
from ..agent.parts import encoded_prompts
from ..data.windows import Window
from ..model import M3DT, PromptCache
from ..tasks import TaskSpec

Kept = TypeVar("Kept", Constants, PromptCache)


class ActingStep(nn.Module):
    """One step of N slots, each of which acts in one of K tasks.

    model: in eval mode, in float32 on the CPU. conditions: of the tasks, in their order. experts: which of the model's act.

    Raises:
        InvalidValueError: a prompt of which the model makes no finite numbers.
    """

    scale: Tensor  # (K,)
    target: Tensor  # (K,) divided by the scale
    low: Tensor  # (K, act_dim)
    high: Tensor  # (K, act_dim)

    def __init__(self, model: M3DT, tasks: Sequence[TaskSpec], conditions: Sequence[Condition], experts: Experts) -> None:
        super().__init__()
        self.model, self._experts, self._several = model, experts, len(tasks) > 1
        config = model.config
        self.obs_dim, self.act_dim = max(task.obs_dim for task in tasks), max(task.act_dim for task in tasks)
        self._widths = [config.state_dim, config.act_dim, 1]
        self._steps_back = range(config.context_length - 1, -1, -1)
        scale = np.array([condition.statistics.return_scale for condition in conditions], np.float64)
        target = np.array([condition.target_return for condition in conditions], np.float64) / scale
        low, high = np.zeros((2, len(tasks), self.act_dim))
        for i, task in enumerate(tasks):
            low[i, : task.act_dim], high[i, : task.act_dim] = task.action_bounds
        self._keep("constant", Constants.of(conditions, config))
        self._keep("prompt", encoded_prompts(model, conditions, experts))
        for name, values in (("scale", scale), ("target", target), ("low", low), ("high", high)):
            self.register_buffer(name, torch.from_numpy(values))

    def forward(
        self,
        observation: Tensor,
        reward: Tensor,
        reset: Tensor,
        history: Tensor,
        return_to_go: Tensor,
        timestep: Tensor,
        task: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The action, and what the next step needs.

        Args:
            observation: (N, obs_dim) float32, not normalized. reward: (N,) float64, of the step before.
            reset: (N,) bool, True where this step opens an episode; the slot's reward and state are then ignored.
            history: (N, T, H) float32, the last T steps as states, actions and returns-to-go.
            return_to_go: (N,) float64 and timestep: (N,) int64, of the step before.
            task: (N,) int64, the index of each slot's task; without, there is one task.

        Returns:
            action (N, act_dim) float32, history, return_to_go and timestep.
        """
        at = torch.zeros_like(timestep) if task is None else task
        constants = self._kept("constant", Constants)
        return_to_go = torch.where(reset, self.target[at], return_to_go - reward / self.scale[at])
        timestep = torch.where(reset, 0, timestep + 1)
        states = constants.normalized(nn.functional.pad(observation, (0, self._widths[0] - self.obs_dim)), at)
        shown = return_to_go[:, None].to(states.dtype)
        past = torch.where(reset[:, None, None], 0.0, history)[:, 1:]  # (N, T - 1, H)
        before = torch.cat(
            (past, torch.cat((states, states.new_zeros(states.shape[0], self._widths[1]), shown), 1)[:, None]), 1
        )
        prompts = self._kept("prompt", PromptCache).select(at)
        taken = constants.taken(self.model.act(self._window(before, timestep), prompts, self._experts), at)
        after = torch.cat((past, torch.cat((states, taken, shown), 1)[:, None]), 1)
        return self._in_bounds(taken, at), after, return_to_go, timestep

    def example(self, N: int) -> tuple[Tensor, ...]:
        """Arguments of `forward` for N slots: zeros. Each is its own tensor: torch.export takes one for the same."""
        shapes = (self.obs_dim,), (), (), (len(self._steps_back), sum(self._widths)), (), (), ()
        dtypes = torch.float32, torch.float64, torch.bool, torch.float32, torch.float64, torch.int64, torch.int64
        every = tuple(torch.zeros(N, *shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
        return every if self._several else every[:-1]

    def _window(self, history: Tensor, timestep: Tensor) -> Window:
        """The model's input, of a history (N, T, H) that ends with the step `timestep` (N,)."""
        steps = timestep[:, None] - torch.tensor(self._steps_back)  # (N, T), below 0 before the episode
        states, actions, returns_to_go = torch.split(history, self._widths, -1)
        return Window(states, actions, returns_to_go, steps.clamp(0, self.model.config.max_timesteps - 1), steps >= 0)

    def _in_bounds(self, taken: Tensor, at: Tensor) -> Tensor:
        """Actions (N, act_dim) in the environments' bounds; `tasks.spaces.to_env` does the same with arrays."""
        low, high = self.low[at], self.high[at]
        own = low + (taken[:, : self.act_dim].double() + 1.0) / 2.0 * (high - low)
        return own.clamp(low, high).float()

    def _keep(self, name: str, tensors: Constants | PromptCache) -> None:
        """Keeps the tensors of a dataclass as constants of this module."""
        for field in dataclasses.fields(tensors):
            self.register_buffer(f"{name}_{field.name}", getattr(tensors, field.name).clone())

    def _kept(self, name: str, kind: type[Kept]) -> Kept:
        return kind(*(getattr(self, f"{name}_{field.name}") for field in dataclasses.fields(kind)))
