"""A bank's agent as who acts while demonstrations are collected (`data.collect`), such as those that a demonstrator labels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from ..bank.builtin import open_bank
from ..data.behavior.policies import Float32Array
from ..errors import BankError
from ..tasks import TaskSpec
from .agent import M3DTAgent
from .choice import Experts


@dataclass(frozen=True, slots=True)
class BankActor:
    """A picklable factory for `collect(policy=…)`: called with a task in a worker, it gives the bank's agent on this task.

    path: of the bank, or `builtin:NAME`. content_hash: the bank's; a dataset is found again by it, wherever the bank lies.
    experts: as `M3DTAgent.experts`; None leaves the choice to the bank.

    Raises (when called):
        BankError: the bank is damaged, or another than it was. ConfigError: experts that it does not have.
        UnknownTaskError: a task that it does not have.
    """

    path: str = field(repr=False)
    content_hash: str
    experts: Experts | None = None

    @classmethod
    def of(cls, path: str, experts: Experts | None = None) -> BankActor:
        """The factory for the bank at `path`.

        Raises:
            BankError: there is no bank, or it is damaged.
        """
        return cls(path, open_bank(path, check="sizes").content_hash, experts)

    def __call__(self, task: TaskSpec) -> AgentActor:
        return AgentActor(_loaded(self), task)


@functools.lru_cache(maxsize=1)  # one process makes many shards
def _loaded(actor: BankActor) -> M3DTAgent:
    agent = M3DTAgent.load(actor.path)
    if agent.content_hash != actor.content_hash:
        raise BankError(f"{actor.path} has changed since the collection began; collect again from the start")
    if actor.experts is not None:
        agent.experts = actor.experts
    return agent


class AgentActor:
    """An agent on one task, as a `BehaviorPolicy`. Its return-to-go falls by what it earns."""

    def __init__(self, agent: M3DTAgent, task: TaskSpec) -> None:
        self._agent, self._task = agent, task
        self._reward: float | None = None

    def reset(self, seed: int) -> None:
        """Begins an episode; the agent draws nothing at random."""
        self._agent.reset(self._task)
        self._reward = None

    def rewarded(self, reward: float) -> None:
        """Tells the agent what its last action earned."""
        self._reward = reward

    def __call__(self, observation: Float32Array) -> Float32Array:
        return self._agent.act(observation, reward=self._reward)
