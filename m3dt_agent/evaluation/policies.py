"""What can be evaluated: `VectorPolicy`, and agents and behavior policies as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..agent import Experts, M3DTAgent, RtgMode
from ..config import EvalConfig
from ..data.behavior import behavior_policy
from ..data.behavior_policies import BehaviorPolicy
from ..model import Routing
from ..tasks import MAX_ACT_DIM, TaskSpec

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class VectorPolicy(Protocol):
    """Whatever acts in N slots at once. `name` and `bank_hash` ("" without a bank) are stored in every row."""

    @property
    def name(self) -> str: ...

    @property
    def bank_hash(self) -> str: ...

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        """Slot i is about to run episodes of tasks[i] with seeds[i], in that order."""

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        """(N, 8) actions for (N, 39) observations.

        reward (N,): of the step before, None at first. reset_mask (N,): obs[i] opens the slot's next episode. active (N,):
        False where the slot is frozen and its action is not used.
        """


class AgentPolicy:
    """An `M3DTAgent` as a `VectorPolicy`. experts: what the agent uses meanwhile (None: as it is set)."""

    def __init__(self, agent: M3DTAgent, rtg_mode: RtgMode = "rewards", name: str | None = None) -> None:
        self._agent, self._rtg_mode = agent, rtg_mode
        self.name = name or f"m3dt-{_experts_name(agent.experts)}"
        self.bank_hash = agent.content_hash

    @property
    def device(self) -> torch.device:
        """Where the agent's model runs."""
        return self._agent.device

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._agent.reset(tasks, rtg_mode=self._rtg_mode)

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        return self._agent.act(obs, reward=reward, reset_mask=reset_mask, active=active)


def _experts_name(experts: Experts) -> str:
    if isinstance(experts, Routing):
        return "routed"
    return f"expert-{experts}" if isinstance(experts, int) else {"none": "backbone", "mixture": "mixture"}[experts]


class BehaviorPolicies:
    """A behavior policy per slot; `level` is what `data.behavior.behavior_policy` takes ("random", "zero", "expert+0.3", …)."""

    bank_hash = ""

    def __init__(self, level: str) -> None:
        self.name = level

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._tasks = tasks
        self._policies: list[BehaviorPolicy] = [behavior_policy(task, self.name) for task in tasks]
        self._seeds = [iter(queue) for queue in seeds]

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        for i in np.flatnonzero(reset_mask).tolist():
            self._policies[i].reset(next(self._seeds[i]))
        actions = np.zeros((len(obs), MAX_ACT_DIM), np.float32)
        for i in np.flatnonzero(active).tolist():
            task = self._tasks[i]
            actions[i, : task.act_dim] = self._policies[i](obs[i, : task.obs_dim])
        return actions


def as_policy(policy: M3DTAgent | VectorPolicy | str, config: EvalConfig) -> VectorPolicy:
    if isinstance(policy, M3DTAgent):
        return AgentPolicy(policy, config.rtg_mode)
    return BehaviorPolicies(policy) if isinstance(policy, str) else policy
