"""M3DT's three stages; methods that differ in the groups or the config; and the oracle, which acts without a router."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.agent.inputs import Bools, Float32Array
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import STAGES, ExpertsConfig, ModelConfig, Stage, TrainConfig
from m3dt_agent.evaluation import AgentPolicy
from m3dt_agent.tasks import MAX_ACT_DIM, TaskSpec

from ..records import FINAL, TaskIdUse
from .base import Method, Outcome, Phase, Work, bank_of, outcome_of, phase, read_curve, run_sampler
from .costs import active_parameters, step_flop

Grouping = Literal["random", "gradient"]


@dataclass(frozen=True, slots=True)
class ThreeStages:
    """M3DT: backbone, experts of grouped tasks, router. config: fields of ModelConfig with other values."""

    grouping: Grouping
    config: Mapping[str, Any] = field(default_factory=dict)
    task_id: TaskIdUse = "training"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        agent = fit_stages(work, work.model_config(**self.config), self.grouping)
        return outcome_of(work, agent, agent.model, "mixture", stage_phases(work, agent, self.grouping))


@dataclass(frozen=True, slots=True)
class Oracle:
    """M3DT-Gradient's experts without a router: on every task the expert that was trained on it acts."""

    grouping: Grouping = "gradient"
    task_id: TaskIdUse = "acting"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        agent = fit_stages(work, work.model_config(), self.grouping, STAGES[:2])
        phases = stage_phases(work, agent, self.grouping, STAGES[:2])
        outcome = outcome_of(work, OraclePolicy(agent, work.cell.method), agent.model, 0, phases)
        routers = sum(p.numel() for p in agent.model.router_tensors().values())
        active = active_parameters(agent.model, 1, routed=False)
        return dataclasses.replace(outcome, parameters=outcome.parameters - routers, active_parameters=active)


class OraclePolicy:
    """Acts in each slot with the expert of the slot's task. Slots with the same expert act together."""

    def __init__(self, agent: M3DTAgent, name: str) -> None:
        self.name = name
        self.bank_hash = agent.content_hash
        self._groups = require_bank(agent).groups or {}
        self._policies = {e: AgentPolicy(_with_expert(agent, e)) for e in sorted(set(self._groups.values()))}
        self._rows: dict[int, npt.NDArray[np.int64]] = {}  # expert → its slots

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        experts = np.array([self._groups[task.name] for task in tasks])
        self._rows = {int(e): np.flatnonzero(experts == e) for e in np.unique(experts)}
        for expert, rows in self._rows.items():
            self._policies[expert].reset([tasks[i] for i in rows], [seeds[i] for i in rows])

    def act(
        self, obs: Float32Array, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools
    ) -> Float32Array:
        actions = np.zeros((len(obs), MAX_ACT_DIM), np.float32)
        for expert, rows in self._rows.items():
            given = None if reward is None else reward[rows]
            actions[rows] = self._policies[expert].act(
                obs[rows], reward=given, reset_mask=reset_mask[rows], active=active[rows]
            )
        return actions


def fit_stages(work: Work, config: ModelConfig, grouping: Grouping, stages: Sequence[Stage] = STAGES) -> M3DTAgent:
    """An agent with these stages trained. Training continues from what the cell's bank already has."""
    bank = bank_of(work, config)
    agent = M3DTAgent(config, work.data.tasks, device=work.device)
    for stage in stages:
        settings = stage_config(work, stage, grouping)
        agent.fit_stage(stage, work.data, bank=bank, config=settings, progress=work.progress, on_log=work.on_log)
    return agent


def stage_config(work: Work, stage: Stage, grouping: Grouping) -> TrainConfig:
    """A stage's config. Only that of the second stage has a grouping."""
    changes: dict[str, Any] = {"grouping": grouping} if stage == "experts" else {}
    return work.train_config(stage, **changes)


def stage_phases(
    work: Work,
    agent: M3DTAgent,
    grouping: Grouping,
    stages: Sequence[Stage] = STAGES,
    logs: Mapping[Stage, Path] | None = None,
) -> list[Phase]:
    """What each stage of an agent's bank took. A grouping by gradients counts as part of the second stage.

    logs: stage → the bank where it was trained, if that is not the agent's own.
    """
    model, found = agent.model, []
    for stage in stages:
        settings = stage_config(work, stage, grouping)
        curve = read_curve(logs[stage] if logs else require_bank(agent).path, settings)
        if stage == "backbone":
            found.append(phase(work, model, stage, model.backbone_tensors(), "none", curve))
        elif stage == "experts":
            part = phase(work, model, stage, model.expert_tensors(), 0, curve)
            found.append(dataclasses.replace(part, flop=part.flop + grouping_flop(work, agent, settings)))
        else:
            found.append(phase(work, model, stage, model.router_tensors(), "mixture", curve))
    return found


def grouping_flop(work: Work, agent: M3DTAgent, config: TrainConfig) -> float:
    """FLOP of grouping the tasks by gradients.

    At each batch every task's gradient is computed twice: for the mean, and to compare with the mean.
    """
    if not isinstance(config, ExpertsConfig) or config.grouping == "random":
        return 0.0
    sampler = run_sampler(work, agent.config, config)
    per_gradient = step_flop(agent.model, sampler, agent.model.backbone_tensors(), "none")
    return 2 * config.grouping_batches * len(work.data.tasks) * per_gradient


def require_bank(agent: M3DTAgent) -> ExpertBank:
    """The bank of an agent that was fitted into one."""
    assert agent.bank is not None
    return agent.bank


def _with_expert(agent: M3DTAgent, expert: int) -> M3DTAgent:
    """An agent with the same model that acts with one expert."""
    return M3DTAgent.from_model(
        agent.model, agent.tasks, agent.statistics, dict(agent.prompts), experts=expert, device=agent.device
    )


METHODS: Mapping[str, Method] = {
    "m3dt-random": ThreeStages("random"),
    "m3dt-gradient": ThreeStages("gradient"),
    "m3dt-published-residual": ThreeStages("gradient", {"residual": "published"}),
    "m3dt-oracle": Oracle(),
}
