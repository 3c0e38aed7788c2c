"""M3DT without one of its parts: the stages, the groups or the frozen experts; and M3DT with a sparse router.

    m3dt-end-to-end         one run from scratch trains everything, all experts routed
    m3dt-no-grouping        backbone │ experts and router together, all experts routed, on all tasks
    m3dt-all-tasks          backbone │ every expert alone, on all tasks         │ router
    m3dt-random-unfrozen    backbone │ every expert alone, on a random group    │ router and experts
    m3dt-gradient-unfrozen  backbone │ every expert alone, on a gradient group  │ router and experts
    m3dt-top-k              backbone │ every expert alone, on a gradient group  │ noisy top-k router

A run that trains experts together has as many steps as the stages it replaces, so every parameter sees as many batches as in
M3DT. At the paper's scale, the one run from scratch has the 1M steps of the baselines. M3DT itself sees more windows, because
each expert has its own batches. A cell may set `joint_steps` instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import STAGES
from m3dt_agent.data.batches import derive_seed
from m3dt_agent.model import M3DT
from m3dt_agent.model.determinism import cpu_threads, seeded
from m3dt_agent.model.moe import INIT_STD, Router
from m3dt_agent.model.transformer import Block
from m3dt_agent.training import experts as expert_stage
from m3dt_agent.training import group_tasks
from m3dt_agent.training import router as router_stage
from m3dt_agent.training.loop import train
from m3dt_agent.training.planning.settling import with_stacking
from m3dt_agent.training.run import Run
from m3dt_agent.training.stage_inputs import StageInputs

from ..records import FINAL, TaskIdUse
from .base import ONE_RUN, Method, Outcome, Work, finish_run, new_model, outcome_of, phase, steps_at, train_run
from .m3dt import Grouping, fit_stages, require_bank, stage_config, stage_phases

TOP_K = 4
"""Experts per token of the sparse router, as in the published code. A cell may set `top_k` instead."""


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """Trains M3DT's whole model in one run, without stages."""

    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = ONE_RUN

    def train(self, work: Work, fraction: str) -> Outcome:
        model = new_model(work, work.model_config())
        parameters = dict(model.named_parameters())
        steps = steps_at(fraction, joint_steps(work, "backbone_steps", "expert_steps", "router_steps"))
        curve = train_run(work, model, parameters, steps=steps, choice="mixture")
        phases = [phase(work, model, "backbone", parameters, "mixture", curve)]
        return outcome_of(work, mixture_agent(work, model), model, "mixture", phases)


@dataclass(frozen=True, slots=True)
class NoGrouping:
    """Trains the backbone and freezes it, then trains experts and router together on all tasks."""

    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        agent = fit_stages(work, work.model_config(), "random", STAGES[:1])
        bank = require_bank(agent)
        model = new_model(work, bank.config)
        bank.load_backbone(model)
        parameters = model.expert_tensors() | model.router_tensors()
        steps = joint_steps(work, "expert_steps", "router_steps")
        curve = train_run(work, model, parameters, steps=steps, choice="mixture", stage="experts", built_on=_backbone_of(bank))
        phases = stage_phases(work, agent, "random", STAGES[:1])
        phases.append(phase(work, model, "experts", parameters, "mixture", curve))
        return outcome_of(work, mixture_agent(work, model), model, "mixture", phases)


@dataclass(frozen=True, slots=True)
class AllTasks:
    """Trains the three stages with every expert on all tasks. Apart from the data, the experts are trained as in M3DT."""

    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        config = work.model_config()
        _fit_experts_on_everything(work, require_bank(fit_stages(work, config, "random", STAGES[:1])))
        agent = fit_stages(work, config, "random", STAGES[2:])
        return outcome_of(work, agent, agent.model, "mixture", stage_phases(work, agent, "random"))


@dataclass(frozen=True, slots=True)
class OtherThirdStage:
    """Trains backbone and experts as M3DT does, then a changed third stage. changed: M3DT's third run → the changed run."""

    grouping: Grouping
    changed: Callable[[Run], Run]
    sparse: bool = False
    task_id: TaskIdUse = "training"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        config = work.model_config(top_k=work.cell.settings.get("top_k", TOP_K) if self.sparse else None)
        agent = fit_stages(work, config, self.grouping, STAGES[:2])
        inputs: StageInputs[Any] = StageInputs(data=work.data, bank=require_bank(agent), config=work.train_config("router"))
        run = self.changed(next(router_stage.runs(inputs)))
        curve = finish_run(work, run)
        phases = stage_phases(work, agent, self.grouping, STAGES[:2])
        phases.append(phase(work, run.model, "router", run.parameters, "mixture", curve))
        return outcome_of(work, mixture_agent(work, run.model), run.model, "mixture", phases)


class NoisyRouter(Router):
    """A router that chooses its k experts with learned noise in training: logits + N(0, 1) · softplus(linear(h)).

    It follows the published code, except that there the noise stays when the agent acts.
    """

    def __init__(self, embed_dim: int, n_experts: int, top_k: int | None) -> None:
        super().__init__(embed_dim, n_experts, top_k)
        self.noise = nn.Linear(embed_dim, n_experts)
        nn.init.normal_(self.noise.weight, std=INIT_STD)
        nn.init.zeros_(self.noise.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Expert weights (…, E), summing to 1, of tokens h (…, D)."""
        if not self.training:
            return super().forward(h)
        x = h
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        scale = functional.softplus(self.noise(h))  # (…, E)
        logits = self.layers[-1](x) + torch.randn_like(scale) * scale
        heaviest = logits.topk(self.top_k or logits.shape[-1])
        return torch.full_like(logits, float("-inf")).scatter(-1, heaviest.indices, heaviest.values).softmax(-1)


def with_noise(run: Run) -> Run:
    """The run with noisy routers that otherwise start with the same weights."""
    D, E, top_k = run.model.config.embed_dim, run.model.config.n_experts, run.model.config.top_k
    with seeded(derive_seed(run.config.seed, "router", 0, 0, "noise"), torch.device("cpu")):
        for block in run.model.blocks:
            assert isinstance(block, Block)
            noisy = NoisyRouter(D, E, top_k)
            noisy.load_state_dict(block.router.state_dict(), strict=False)
            block.router = noisy
    return dataclasses.replace(run, parameters=run.model.router_tensors())


def with_experts(run: Run) -> Run:
    """The run, training the experts too."""
    return dataclasses.replace(run, parameters=run.model.expert_tensors() | run.model.router_tensors())


def mixture_agent(work: Work, model: M3DT) -> M3DTAgent:
    """An agent with a model that is in no bank; all experts are routed."""
    return M3DTAgent.from_model(
        model, work.data.tasks, work.statistics(), work.prompts(), experts="mixture", device=work.device
    )


def joint_steps(work: Work, *stages: str) -> int:
    """Steps of a run that replaces several stages."""
    return int(work.cell.settings.get("joint_steps", sum(work.setting(name) for name in stages)))


def _fit_experts_on_everything(work: Work, bank: ExpertBank) -> None:
    """Trains the second stage of a bank with every expert on all tasks."""
    config: Any = with_stacking(stage_config(work, "experts", "random"), bank.config, work.device)
    group_tasks(work.data, bank, config, progress=work.progress)  # a bank must have groups, though nothing here uses them
    inputs: StageInputs[Any] = StageInputs(data=work.data, bank=bank, config=config)
    threads = config.threads or torch.get_num_threads()
    for run in expert_stage.runs(inputs):
        everything = dataclasses.replace(run, samplers=[inputs.sampler(work.data, expert) for expert in run.experts])
        with cpu_threads(threads):
            train(everything, bank.path, device=work.device, threads=threads, progress=work.progress, on_log=work.on_log)
        bank.commit(run.public_files())
        expert_stage.remove_finished(bank)


def _backbone_of(bank: ExpertBank) -> dict[str, str]:
    return {"backbone": bank.manifest.files["backbone.safetensors"].sha256}


METHODS: Mapping[str, Method] = {
    "m3dt-end-to-end": EndToEnd(),
    "m3dt-no-grouping": NoGrouping(),
    "m3dt-all-tasks": AllTasks(),
    "m3dt-random-unfrozen": OtherThirdStage("random", with_experts),
    "m3dt-gradient-unfrozen": OtherThirdStage("gradient", with_experts),
    "m3dt-top-k": OtherThirdStage("gradient", with_noise, sparse=True),
}
