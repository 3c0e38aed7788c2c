"""How the arms of `continual` learn four more tasks: what is trained, on what, and what acts afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m3dt_agent.agent import Experts, M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig, TrainConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.model import M3DT, ExpertChoice
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.training.growth import growth_runs
from m3dt_agent.training.run import Run
from m3dt_agent.training.trainer import Trainer

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Where on the way of an increment its four tasks are evaluated, as fractions of its steps."""


@dataclass(slots=True)
class Learned:
    """What an arm knows: a model, and the statistics and prompts of its tasks. experts: which of them act."""

    model: M3DT
    data: list[TaskDatasets]
    experts: Experts = "none"

    def agent(self, names: Sequence[str]) -> M3DTAgent:
        """An agent for some of its tasks."""
        config = self.model.config
        parts = [(part, [task for task in part.tasks if task.name in names]) for part in self.data]
        subsets = [part.subset([task.name for task in tasks]) for part, tasks in parts if tasks]
        statistics = {name: one for part in subsets for name, one in compute_statistics(part).items()}
        prompts = {name: one for part in subsets for name, one in make_prompts(part, config.prompt_length).items()}
        tasks = [task for part in subsets for task in part.tasks]
        return M3DTAgent.from_model(self.model.eval(), tasks, statistics, prompts, experts=self.experts)


@dataclass(frozen=True, slots=True)
class Increment:
    """Four tasks that join. number: from 0. folder: where the arm may keep banks. base: the bank of the other tasks.

    steps: of training; the router of `without_mask` has half as many more. settings: of the training, without its steps.
    """

    number: int
    data: TaskDatasets
    folder: Path
    base: Path
    steps: int
    settings: Mapping[str, Any]

    def bank_before(self) -> ExpertBank:
        """The bank that the arm has grown to, or that of the other tasks."""
        return ExpertBank.open(self.folder / f"grown-{self.number - 1}" if self.number else self.base)


Arm = Callable[[Learned, Increment], Iterator[tuple[float, Learned]]]
"""Learns the tasks of an increment; yields what it knows after each of FRACTIONS. The last of these is what it goes on with."""


def fine_tuned(before: Learned, now: Increment) -> Iterator[tuple[float, Learned]]:
    """The whole backbone goes on training on the new tasks."""
    learned = Learned(before.model, [*before.data, now.data])
    run = _run(learned, now.data, learned.model.backbone_tensors(), "none", BackboneConfig(steps=now.steps, **now.settings))
    for fraction in _stepped(run):
        yield fraction, learned


def from_scratch(before: Learned, now: Increment) -> Iterator[tuple[float, Learned]]:
    """A new backbone for the new tasks; it knows no others."""
    torch.manual_seed(now.settings["seed"])
    config = dataclasses.replace(before.model.config, n_experts=0, top_k=None)
    learned = Learned(M3DT(config), [now.data])
    run = _run(learned, now.data, learned.model.backbone_tensors(), "none", BackboneConfig(steps=now.steps, **now.settings))
    for fraction in _stepped(run):
        yield fraction, learned


def grown(before: Learned, now: Increment) -> Iterator[tuple[float, Learned]]:
    """The bank in the arm's folder grows by the new tasks and one expert; what was there acts as before."""
    bank = now.bank_before().grown(now.folder / f"grown-{now.number}", now.data, experts=1)
    config = ExpertsConfig(steps=now.steps, experts_at_once=1, **now.settings)
    (run,) = growth_runs(now.data, bank, config)
    for fraction in _stepped(run):
        yield fraction, Learned(run.model, [now.data], experts=0)
    bank.commit(run.public_files())


def without_mask(before: Learned, now: Increment) -> Iterator[tuple[float, Learned]]:
    """The new expert is that of `grown`; then a wider router is trained on the new tasks. All tasks act with the mixture."""
    last = before
    for fraction, last in grown(before, now):
        if fraction < FRACTIONS[-1]:
            yield fraction, last
    wide = _with_expert(before.model, last.model)
    learned = Learned(wide, [*before.data, now.data], experts="mixture")
    config = RouterConfig(steps=max(1, now.steps // 2), **now.settings)
    for _ in _stepped(_run(learned, now.data, wide.router_tensors(), "mixture", config), (1.0,)):
        yield FRACTIONS[-1], learned


ARMS: Mapping[str, Arm] = {
    "grown": grown,
    "fine-tuned": fine_tuned,
    "without mask": without_mask,
    "from scratch": from_scratch,
}


def backbone_of(model: M3DT) -> M3DT:
    """A copy of the model without its experts and router."""
    alone = M3DT(dataclasses.replace(model.config, n_experts=0, top_k=None))
    alone.load_tensors({name: tensor.detach().clone() for name, tensor in model.backbone_tensors().items()})
    return alone


def _stepped(run: Run, fractions: Sequence[float] = FRACTIONS) -> Iterator[float]:
    """Trains a run in memory and stops after each of some fractions of its steps."""
    with cpu_threads(1):
        trainer = Trainer(run, "cpu")
        for fraction in fractions:
            run.model.train()
            while trainer.step_count < round(fraction * run.config.steps):
                trainer.step()
            trainer.require_finite()
            run.model.eval()
            yield fraction
        trainer.finish()
    run.model.requires_grad_(False)


def _run(
    learned: Learned, data: TaskDatasets, part: Mapping[str, nn.Parameter], choice: ExpertChoice, config: TrainConfig
) -> Run:
    """A run that trains `part` of the model on `data`."""
    sampler = BatchSampler(
        data,
        compute_statistics(data),
        make_prompts(data, learned.model.config.prompt_length),
        learned.model.config,
        batch_size=config.batch_size,
        tasks_per_batch=config.tasks_per_batch,
        seed=config.seed,
        stage=config.stage,
    )
    return Run("continual", config, learned.model, part, (sampler,), choice, {}, dict)


@torch.no_grad()
def _with_expert(model: M3DT, new: M3DT) -> M3DT:
    """A copy of the model with one more expert, that of `new`, and a router that gives it next to no weight yet."""
    n_experts = model.config.n_experts
    wide = M3DT(dataclasses.replace(model.config, n_experts=n_experts + 1))
    wide.load_tensors({name: tensor.detach().clone() for name, tensor in model.backbone_tensors().items()})
    for expert in range(n_experts):
        wide.load_expert(expert, model.expert_slice(expert))
    wide.load_expert(n_experts, new.expert_slice(0))
    old = model.router_tensors()
    for name, parameter in wide.router_tensors().items():
        given = old[name]
        if given.shape == parameter.shape:
            parameter.copy_(given)
        else:
            parameter.zero_()
            parameter[: len(given)] = given
            if parameter.ndim == 1:
                parameter[len(given) :] = given.min() - 2.0
    return wide
