"""What can be evaluated: anything that is a `VectorPolicy`; agents and behavior policies are made one by `as_policy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..agent import Experts, M3DTAgent, RtgMode
from ..agent.inputs import Bools, Float32Array
from ..config import EvalConfig
from ..data.behavior import behavior_policy
from ..data.behavior.policies import BehaviorPolicy
from ..errors import ConfigError
from ..model import Routing
from ..scores import AGENT_POLICIES, EXPERT_POLICY
from ..tasks import TaskSpec, padded_widths


class VectorPolicy(Protocol):
    """What acts in N slots at once. `name` and `bank_hash` ("" without a bank) are stored in every row."""

    @property
    def name(self) -> str: ...

    @property
    def bank_hash(self) -> str: ...

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        """Prepares for new episodes: slot i will run those of tasks[i] with seeds[i], in that order."""

    def act(
        self, obs: Float32Array, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools
    ) -> Float32Array:
        """(N, A) actions for (N, W) observations, zero-padded. W and A: `tasks.padded_widths` of the tasks given to `reset`.

        Args:
            reward: (N,), earned by the step before; None at the first step.
            reset_mask: (N,), True where obs[i] is the first of the slot's next episode.
            active: (N,), False where the slot waits and its action is not used.
        """


class AgentPolicy:
    """An `M3DTAgent` as a `VectorPolicy`, with the experts that the agent is set to.

    rtg_mode: as `M3DTAgent.reset` takes it; it takes precedence over `EvalConfig.rtg_mode`, which decides if this is None
    (outside an evaluation: "rewards").
    name: in rows; None names the experts that the agent is set to now, as in "m3dt-mixture".
    """

    def __init__(self, agent: M3DTAgent, rtg_mode: RtgMode | None = None, name: str | None = None) -> None:
        self._agent, self.rtg_mode = agent, rtg_mode
        self.name = name or policy_name(agent.experts)
        self.bank_hash = agent.content_hash

    def within(self, config: EvalConfig) -> AgentPolicy:
        """This policy in an evaluation: with the config's `rtg_mode`, unless it has its own."""
        return self if self.rtg_mode is not None else AgentPolicy(self._agent, config.rtg_mode, self.name)

    @property
    def settings(self) -> Mapping[str, str]:
        """What rows say of how the agent acts."""
        precision = "float64" if self._agent.dtype is torch.float64 else self._agent.precision
        return acting_settings(self._agent.experts, self.rtg_mode or "rewards", precision)

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks of the agent."""
        return self._agent.tasks

    @property
    def device(self) -> torch.device:
        """Where the agent's model runs."""
        return self._agent.device

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._agent.reset(tasks, rtg_mode=self.rtg_mode or "rewards")
        self._act_width = padded_widths(tasks)[1]

    def act(
        self, obs: Float32Array, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools
    ) -> Float32Array:
        seen = _of_width(obs, self._agent.config.state_dim)
        return _of_width(self._agent.act(seen, reward=reward, reset_mask=reset_mask, active=active), self._act_width)


def _of_width(rows: Float32Array, width: int) -> Float32Array:
    """(N, …) rows, padded with zeros or cut to (N, width): what is cut off is padding."""
    if rows.shape[1] >= width:
        return rows[:, :width]
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


def acting_settings(experts: Experts, rtg_mode: RtgMode, precision: str | None) -> dict[str, str]:
    """What rows say of how an agent acts; None: the precision is not known here."""
    known = {} if precision is None else {"precision": precision}
    return {"experts": str(experts), "rtg_mode": rtg_mode, **known}


def tasks_of(policy: VectorPolicy) -> tuple[TaskSpec, ...]:
    """The tasks that names mean first: an agent's own."""
    return policy.tasks if isinstance(policy, AgentPolicy) else ()


def settings_of(policy: VectorPolicy) -> Mapping[str, str]:
    """The settings that the policy's rows have; none for policies other than agents."""
    return policy.settings if isinstance(policy, AgentPolicy) else {}


def policy_name(experts: Experts) -> str:
    """What rows call an agent whose `experts` act."""
    if isinstance(experts, Routing):
        return AGENT_POLICIES["routed"]
    return EXPERT_POLICY.format(experts) if isinstance(experts, int) else AGENT_POLICIES[experts]


class BehaviorPolicies:
    """A behavior policy for each slot.

    level: as `data.behavior.behavior_policy` takes it ("random", "zero", "expert+0.3", …).
    """

    bank_hash = ""

    def __init__(self, level: str) -> None:
        self.name = level

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._tasks = tasks
        self._policies: list[BehaviorPolicy] = [behavior_policy(task, self.name) for task in tasks]
        self._seeds = [iter(queue) for queue in seeds]

    def act(
        self, obs: Float32Array, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools
    ) -> Float32Array:
        for i in np.flatnonzero(reset_mask).tolist():
            self._policies[i].reset(next(self._seeds[i]))
        actions = np.zeros((len(obs), padded_widths(self._tasks)[1]), np.float32)
        for i in np.flatnonzero(active).tolist():
            task = self._tasks[i]
            actions[i, : task.act_dim] = self._policies[i](obs[i, : task.obs_dim])
        return actions


def as_policy(policy: M3DTAgent | VectorPolicy | str, config: EvalConfig) -> VectorPolicy:
    """What acts in an evaluation. policy: an agent, the level of a behavior policy, or any `VectorPolicy`.

    `config.rtg_mode` holds for agents; an `AgentPolicy` with its own mode keeps that.

    Raises:
        ConfigError: it is none of these, or its `name` or `bank_hash` cannot stand in a row.
    """
    if not isinstance(config, EvalConfig):
        raise ConfigError(f"config must be an EvalConfig or None; got {config!r:.100}")
    if isinstance(policy, str):
        return BehaviorPolicies(policy)
    if isinstance(policy, M3DTAgent):
        policy = AgentPolicy(policy)
    if not callable(getattr(policy, "reset", None)) or not callable(getattr(policy, "act", None)):
        raise ConfigError(f"policy must be an agent, a behavior policy's level, or have `reset` and `act`; got {policy!r:.100}")
    for name, least in (("name", 1), ("bank_hash", 0)):
        value = getattr(policy, name, None)
        if not isinstance(value, str) or not value.isprintable() or len(value) < least:
            raise ConfigError(f"a policy's {name} must be a string of printable characters; got {value!r:.100}")
    return policy.within(config) if isinstance(policy, AgentPolicy) else policy
