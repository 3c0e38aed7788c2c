"""HarmoDT (Hu et al. 2024, arXiv 2405.18080): Prompt-DT in which every task uses its own subset of the weights.

    masks               a bit per task and weight, except in embeddings and prediction head; 20% masked, drawn with
                        ERK densities (Evci et al. 2020)
    a training step     on one task t: weights * maskₜ ─► forward, backward, clip ─► gradient * maskₜ ─► AdamW; masked
                        weights then get their old values back
    every 500 steps     for every task t, with gₜ the clipped gradient of one batch of t through maskₜ, and ḡ = meanₜ gₜ:
        drop            the k active weights with the lowest γ·gₜ⊙ḡ + gₜ²
        revive          the k masked weights with the highest gₜ⊙ḡ;  k = ⌊50(1 - cos 2πs/S)⌋ at step s of S
    acting              with the mask of the slot's task, so the task must be known

`published` reproduces two defects of the released code (github.com/charleshsc/HarmoDT). There gₜ is masked too, so that all
masked weights tie and revival is nearly arbitrary (ours takes ties in order, that code leaves them to `topk`). And the sum for
ḡ is accumulated in the first task's gₜ, so that ḡ replaces it. Two differences are not reproduced: that code also masks
embeddings and head, which changes neither forward nor gradient but undoes updates; and its tasks take turns, while ours are
drawn.

Every gₜ is computed twice instead of kept, because 160 gradients of the largest model would take 110 GB.

Shape legend: N tasks, P entries of the masked parameters, flat and in their order.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.data.batches import Batch, BatchSampler, derive_seed
from m3dt_agent.evaluation import AgentPolicy
from m3dt_agent.model import M3DT
from m3dt_agent.model.determinism import seeded
from m3dt_agent.tasks import MAX_ACT_DIM, TaskSpec
from m3dt_agent.training.conflict import masked_losses, mean_gradient
from m3dt_agent.training.run import StepHooks

from ..records import TaskIdUse
from .backbones import one_run_outcome
from .base import ONE_RUN, Method, Outcome, Work, new_model, run_sampler, steps_at, train_run
from .task_masks import TaskMasks, apply_mask, maskable


@dataclass(frozen=True, slots=True)
class HarmoDT:
    """HarmoDT with the released code's settings. A cell's `harmo_swap_every` replaces swap_every.

    Windows and FLOP include those of the swaps. `active_parameters` is the mean over tasks of the unmasked parameters.
    """

    name: str = "harmo-dt"
    published: bool = False
    sparsity: float = 0.2
    gamma: float = 10.0
    swap_every: int = 500
    task_id: TaskIdUse = "acting"
    fractions: tuple[str, ...] = ONE_RUN

    def train(self, work: Work, fraction: str) -> Outcome:
        config, tasks = work.model_config(n_experts=0), work.data.tasks
        model = new_model(work, config)
        of_run = work.setting("backbone_steps")
        steps = steps_at(fraction, of_run)
        settings = work.train_config("backbone", steps=steps, tasks_per_batch=1)
        swap_every = int(work.cell.settings.get("harmo_swap_every", self.swap_every))
        masks = TaskMasks.random(maskable(model), len(tasks), self.sparsity, settings.seed)
        sampler = run_sampler(work, config, settings)
        rule = SwapRule(swap_every, of_run, self.gamma, settings.grad_clip, self.published)
        hooks = MaskedTraining(model, masks, sampler, rule, settings.seed)
        curve = train_run(work, model, model.backbone_tensors(), steps=steps, hooks=hooks, tasks_per_batch=1)
        agent = M3DTAgent.from_model(model, tasks, work.statistics(), work.prompts(), device=work.device)
        outcome = one_run_outcome(work, agent, config, steps, curve)
        swaps = sum(rule.count(step) > 0 for step in range(steps))
        passes = swaps * (2 * len(tasks) - self.published)
        return dataclasses.replace(
            outcome,
            policy=HarmoPolicy(self.name, agent, masks),
            active_parameters=outcome.parameters - round(masks.masked_counts().mean()),
            windows=outcome.windows + swaps * len(tasks) * settings.batch_size,
            training_flop=outcome.training_flop * (1 + passes / steps),
        )


@dataclass(frozen=True, slots=True)
class SwapRule:
    """When and how masks change. every: steps between swaps. steps: of the whole training. clip: largest gradient norm."""

    every: int
    steps: int
    gamma: float
    clip: float
    published: bool

    def count(self, step: int) -> int:
        """How many entries k each mask swaps after step `step` (counted from 0); 0 if this step swaps nothing."""
        if (step + 1) % self.every:
            return 0
        return math.floor(50 * (1 - math.cos(2 * math.pi * step / self.steps)))

    def swapped(self, mask: Tensor, gradient: Tensor, mean: Tensor, k: int) -> Tensor:
        """The next mask of a task, (P,), from its mask, its gradient and the mean gradient.

        Fewer than k entries are swapped if fewer are active or masked.
        """
        k = min(k, int(mask.sum()), int((~mask).sum()))
        agreement = gradient * mean
        dropped = _lowest(self.gamma * agreement + gradient.square(), mask, k)
        revived = _lowest(-agreement, ~mask, k)
        return (mask & ~dropped) | revived


def _lowest(scores: Tensor, among: Tensor, k: int) -> Tensor:
    """Marks (P,) the k lowest scores among the marked entries; among equal scores the first."""
    if k == 0:
        return torch.zeros_like(among)
    scores = scores.masked_fill(~among, torch.inf)
    highest = scores.topk(k, largest=False).values.max()
    lower = scores < highest
    ties = (scores == highest).nonzero()[: k - int(lower.sum()), 0]
    return lower.index_fill(0, ties, True)


class MaskedTraining(StepHooks):
    """Runs every step through the mask of its batch's task, and swaps mask entries."""

    def __init__(self, model: M3DT, masks: TaskMasks, sampler: BatchSampler, rule: SwapRule, seed: int) -> None:
        self.model, self.masks, self.sampler, self.rule, self.seed = model, masks, sampler, rule, seed
        self.parameters = list(masks.parameters.values())

    @torch.no_grad()
    def before_forward(self, step: int, batch: Batch) -> None:
        (task,) = set(batch.tasks.tolist())
        self._active = self.masks.split(self.masks.of(task))
        self._before = [parameter.detach().clone() for parameter in self.parameters]
        for parameter, active in zip(self.parameters, self._active, strict=True):
            parameter.mul_(active)

    @torch.no_grad()
    def before_update(self) -> None:
        for parameter, active in zip(self.parameters, self._active, strict=True):
            assert parameter.grad is not None
            parameter.grad.mul_(active)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        for parameter, active, before in zip(self.parameters, self._active, self._before, strict=True):
            parameter.copy_(torch.where(active, parameter, before))
        if k := self.rule.count(step):
            self.swap(step, k)

    def tensors(self) -> dict[str, Tensor]:
        return {"masks": torch.from_numpy(self.masks.packed)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.masks.packed[:] = tensors["masks"].numpy()

    def swap(self, step: int, k: int) -> None:
        """Swaps k entries of every task's mask."""
        n_tasks = len(self.masks.packed)
        mean = mean_gradient(lambda: (self.gradient(task, step) for task in range(n_tasks)))
        for task in range(n_tasks):
            overwritten = self.rule.published and task == 0
            gradient = mean if overwritten else self.gradient(task, step)
            self.masks.put(task, self.rule.swapped(self.masks.of(task), gradient, mean, k))

    def gradient(self, task: int, step: int) -> Tensor:
        """gₜ, (P,): the gradient of the loss on one batch of `task` drawn for this step, with dropout.

        It is clipped by the norm over all parameters, not only the masked ones.
        """
        first, mask = self.parameters[0], self.masks.of(task)
        batch = self.sampler.sample_task(task, step).to(first.device, first.dtype)
        every = dict(self.model.named_parameters())
        seed = derive_seed(self.seed, "backbone", task, step, "swap")
        with self._masked(mask), seeded(seed, first.device), torch.enable_grad():
            loss = masked_losses(self.model(batch.window, batch.prompt, "none"), batch, 1).sum()
            gradients = dict(zip(every, torch.autograd.grad(loss, list(every.values())), strict=True))
        norm = nn.utils.get_total_norm(gradients.values())
        found = torch.cat([gradients[name].flatten() for name in self.masks.parameters])
        found *= (self.rule.clip / (norm + 1e-6)).clamp(max=1.0)
        return found * mask if self.rule.published else found

    @contextlib.contextmanager
    def _masked(self, mask: Tensor) -> Iterator[None]:
        before = [parameter.detach().clone() for parameter in self.parameters]
        apply_mask(self.parameters, self.masks.split(mask))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, kept in zip(self.parameters, before, strict=True):
                    parameter.copy_(kept)


class HarmoPolicy:
    """Each slot acts with the weights that its task's mask leaves. There is one model for each task in the slots."""

    bank_hash = ""

    def __init__(self, name: str, agent: M3DTAgent, masks: TaskMasks) -> None:
        self.name, self.agent, self.masks = name, agent, masks

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        names = np.array([task.name for task in tasks])
        self._parts: list[tuple[NDArray[np.int64], AgentPolicy]] = []
        for task in dict.fromkeys(tasks):
            rows = np.flatnonzero(names == task.name)
            policy = AgentPolicy(self.agent_of(task))
            policy.reset([task] * len(rows), [seeds[row] for row in rows.tolist()])
            self._parts.append((rows, policy))

    def act(self, obs: Any, *, reward: Any, reset_mask: Any, active: Any) -> Any:
        actions = np.zeros((len(obs), MAX_ACT_DIM), np.float32)
        for rows, policy in self._parts:
            given = None if reward is None else reward[rows]
            actions[rows] = policy.act(obs[rows], reward=given, reset_mask=reset_mask[rows], active=active[rows])
        return actions

    def agent_of(self, task: TaskSpec) -> M3DTAgent:
        """An agent of one task, on a copy of the weights with the task's mask applied."""
        whole, name = self.agent, task.name
        number = [known.name for known in whole.tasks].index(name)  # as batches number them
        model = copy.deepcopy(whole.model)
        apply_mask(list(maskable(model).values()), self.masks.split(self.masks.of(number)))
        statistics, prompts = {name: whole.statistics[name]}, {name: whole.prompts[name]}
        return M3DTAgent.from_model(model, [task], statistics, prompts, device=whole.device)


METHODS: Mapping[str, Method] = {
    "harmo-dt": HarmoDT(),
    "harmo-dt-published": HarmoDT("harmo-dt-published", published=True),
}
