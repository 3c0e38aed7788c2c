"""One network without experts for all tasks: Prompt-DT of any width, and the same without returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.stats import TaskStatistics
from m3dt_agent.errors import StageError

from ..records import TaskIdUse
from .base import (
    ONE_RUN,
    Curve,
    Method,
    Outcome,
    Work,
    bank_of,
    read_curve,
    run_sampler,
    steps_at,
)
from .costs import action_flop, count_parameters, step_flop

_NO_RETURNS = 1e30
"""A return scale so large that every return-to-go that a model sees is 0."""


@dataclass(frozen=True, slots=True)
class PromptDT:
    """Prompt-DT (Xu et al. 2022), which is M3DT's backbone alone. Without returns it is behavior cloning with a prompt."""

    returns: bool = True
    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = ONE_RUN

    def train(self, work: Work, fraction: str) -> Outcome:
        config = work.model_config(n_experts=0)
        statistics = work.statistics() if self.returns else without_returns(work.statistics())
        bank = bank_of(work, config, statistics)
        steps = steps_at(fraction, work.setting("backbone_steps"))
        agent = M3DTAgent(config, work.data.tasks, device=work.device)
        settings = work.train_config("backbone", steps=steps)
        agent.fit_stage("backbone", work.data, bank=bank, config=settings, progress=work.progress, on_log=work.on_log)
        return one_run_outcome(work, agent, config, steps, read_curve(bank.path, settings))


def one_run_outcome(work: Work, agent: M3DTAgent, config: ModelConfig, steps: int, curve: Curve) -> Outcome:
    """The outcome of a model without experts, all of whose parameters were trained for `steps`.

    Raises:
        StageError: the model was trained further.
    """
    model, settings = agent.model, work.train_config("backbone")
    if curve[-1][0] != steps * settings.batch_size:
        raise StageError(f"the model in {work.folder} has seen {curve[-1][0]:,} windows, not those of {steps:,} steps")
    sampler = run_sampler(work, config, settings, agent.prompts)
    parameters = count_parameters(model)
    return Outcome(
        policy=agent,
        parameters=parameters,
        active_parameters=parameters,
        windows=curve[-1][0],
        training_flop=steps * step_flop(model, sampler, dict(model.named_parameters()), "none"),
        action_flop=action_flop(model, sampler, "none"),
        curve=curve,
    )


def without_returns(statistics: Mapping[str, TaskStatistics]) -> dict[str, TaskStatistics]:
    """Statistics with which a model sees only returns-to-go of 0, in training and when it acts."""
    return {name: dataclasses.replace(found, return_scale=_NO_RETURNS, target_return=0.0) for name, found in statistics.items()}


METHODS: Mapping[str, Method] = {"prompt-dt": PromptDT(), "prompt-bc": PromptDT(returns=False)}
