"""Prompt-DT with M3DT's parameters in one wide feed-forward layer per block. It shows whether experts help, or only size.

    M3DT, block        FFN D → 4D → D,  E experts D → 4D → D,  router      8D²(E+1) + 5D(E+1) + router
    wide, block        FFN D → 4D(E+1) → D                                 8D²(E+1) + 4D(E+1) + D

The difference is the routers, and E output biases of D numbers each that a single layer does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m3dt_agent.agent import M3DTAgent

from ..records import TaskIdUse
from .backbones import one_run_outcome
from .base import ONE_RUN, Method, Outcome, Work, new_model, steps_at, train_run


@dataclass(frozen=True, slots=True)
class WidePromptDT:
    """Prompt-DT of inner width 4D(E+1), where E is the cell's `n_experts`."""

    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = ONE_RUN

    def train(self, work: Work, fraction: str) -> Outcome:
        config = work.model_config(n_experts=0, ffn_multiple=4 * (work.setting("n_experts") + 1))
        model = new_model(work, config)
        steps = steps_at(fraction, work.setting("backbone_steps"))
        curve = train_run(work, model, model.backbone_tensors(), steps=steps)
        agent = M3DTAgent.from_model(model, work.data.tasks, work.statistics(), work.prompts(), device=work.device)
        return one_run_outcome(work, agent, config, steps, curve)


METHODS: Mapping[str, Method] = {"prompt-dt-wide": WidePromptDT()}
