"""HarmoDT (Hu et al. 2024, arXiv 2405.18080): Prompt-DT whose every task uses its own part of the weights.

    a mask per task, a bit per weight     not on embeddings and prediction head; 20% masked, ERK-random (Evci et al. 2020)
    a step, on one task t                 weights * maskₜ ─► forward, backward, clip ─► gradient * maskₜ ─► AdamW
                                          after which what is masked is what it was
    every 500 steps, for every task       gₜ: gradient of one batch of t through maskₜ, clipped;  ḡ = meanₜ gₜ
        drop    the k active weights with the lowest γ·gₜ⊙ḡ + gₜ²
        revive  the k masked weights with the highest gₜ⊙ḡ          k = ⌊50(1 - cos 2πs/S)⌋ at step s of S: the count stays
    acting                                with the mask of the slot's task, so the task must be known

`published` reproduces two defects of the released code (github.com/charleshsc/HarmoDT): gₜ is masked too, so that all masked
weights tie and revival is nearly arbitrary (ours takes ties in order; in that code it is whatever `topk` does), and the first
task's gₜ is overwritten by ḡ, into which it is summed in place. Not reproduced in either: there, masks also lie on embeddings
and head, where neither forward nor gradient heeds them but updates are undone; there, tasks take turns (ours are drawn).

Both gradient passes are computed, gₜ is not kept: 160 gradients of the largest model would be 110 GB. Masks are kept as bits.

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

_UNMASKED = ("embed", "embed_prompt", "embed_norm", "predict_action")


@dataclass(frozen=True, slots=True)
class HarmoDT:
    """HarmoDT with the released code's settings. swap_every: the cell's `harmo_swap_every`, if it has one, comes first.

    Windows and FLOP count what the swaps need too. `active_parameters` is the mean over tasks of what is not masked.
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
    """When and how masks change. every: steps between swaps. steps: of the whole training. clip: norm of gradients."""

    every: int
    steps: int
    gamma: float
    clip: float
    published: bool

    def count(self, step: int) -> int:
        """k, after step `step` (from 0); 0 where nothing is swapped."""
        if (step + 1) % self.every:
            return 0
        return math.floor(50 * (1 - math.cos(2 * math.pi * step / self.steps)))

    def swapped(self, mask: Tensor, gradient: Tensor, mean: Tensor, k: int) -> Tensor:
        """The next mask of a task with this gradient, all (P,); fewer than k are swapped where fewer are active or masked."""
        k = min(k, int(mask.sum()), int((~mask).sum()))
        agreement = gradient * mean
        dropped = _lowest(self.gamma * agreement + gradient.square(), mask, k)
        revived = _lowest(-agreement, ~mask, k)
        return (mask & ~dropped) | revived


def _lowest(scores: Tensor, among: Tensor, k: int) -> Tensor:
    """The k lowest scores among those that are marked, as marks (P,); of equal ones the first."""
    if k == 0:
        return torch.zeros_like(among)
    scores = scores.masked_fill(~among, torch.inf)
    highest = scores.topk(k, largest=False).values.max()
    lower = scores < highest
    ties = (scores == highest).nonzero()[: k - int(lower.sum()), 0]
    return lower.index_fill(0, ties, True)


class TaskMasks:
    """Which entries of `parameters` each task uses. packed: (N, ⌈P/8⌉) uint8, eight entries a byte, the first its top bit."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], packed: NDArray[np.uint8]) -> None:
        self.parameters, self.packed = parameters, packed
        self.sizes = [parameter.numel() for parameter in parameters.values()]

    @classmethod
    def random(cls, parameters: Mapping[str, nn.Parameter], n_tasks: int, sparsity: float, seed: int) -> TaskMasks:
        """Independent masks: every entry is active with its parameter's ERK density."""
        densities = erk_densities({name: p.shape for name, p in parameters.items()}, 1 - sparsity)
        chances = np.repeat(list(densities.values()), [p.numel() for p in parameters.values()]).astype(np.float32)  # (P,)
        rows = []
        for task in range(n_tasks):
            rng = np.random.default_rng(derive_seed(seed, "backbone", 0, task, "mask"))
            rows.append(np.packbits(rng.random(len(chances), np.float32) < chances))
        return cls(parameters, np.stack(rows))

    def of(self, task: int) -> Tensor:
        """(P,) bool, where the parameters are."""
        device = next(iter(self.parameters.values())).device
        row = torch.from_numpy(self.packed[task]).to(device)
        bits = (row[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=device)) & 1  # (⌈P/8⌉, 8)
        return bits.flatten()[: sum(self.sizes)].bool()

    def put(self, task: int, mask: Tensor) -> None:
        """Replaces a task's mask, (P,) bool."""
        self.packed[task] = np.packbits(mask.cpu().numpy())

    def split(self, mask: Tensor) -> list[Tensor]:
        """A mask as one tensor for each parameter, of its shape."""
        parts = zip(torch.split(mask, self.sizes), self.parameters.values(), strict=True)
        return [part.view_as(parameter) for part, parameter in parts]

    def masked_counts(self) -> NDArray[np.int64]:
        """How many entries each task does not use, (N,)."""
        return np.array([int((~self.of(task)).sum()) for task in range(len(self.packed))])


class MaskedTraining(StepHooks):
    """Steps through the mask of their batch's task, and swaps."""

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
        """gₜ, (P,): of the loss on one batch of `task` that is drawn for this step, with dropout, all parameters clipped."""
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
    """Slots act with the weights that their task's mask leaves; a wave of them holds one model for each of its tasks."""

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
        """An agent of one task, with its mask on a copy of the weights."""
        whole, name = self.agent, task.name
        number = [known.name for known in whole.tasks].index(name)  # as batches number them
        model = copy.deepcopy(whole.model)
        apply_mask(list(maskable(model).values()), self.masks.split(self.masks.of(number)))
        statistics, prompts = {name: whole.statistics[name]}, {name: whole.prompts[name]}
        return M3DTAgent.from_model(model, [task], statistics, prompts, device=whole.device)


def maskable(model: M3DT) -> dict[str, nn.Parameter]:
    """The parameters that masks lie on: all of the blocks, and the last norm."""
    return {name: parameter for name, parameter in model.named_parameters() if name.split(".")[0] not in _UNMASKED}


@torch.no_grad()
def apply_mask(parameters: Sequence[nn.Parameter], masks: Sequence[Tensor]) -> None:
    """Sets to 0 what is masked."""
    for parameter, mask in zip(parameters, masks, strict=True):
        parameter.mul_(mask)


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Erdős–Rényi-kernel densities (Evci et al. 2020, arXiv 1911.11134): of a tensor ∝ Σ dims / Π dims, `density` in all.

    A tensor whose share would be over 1 is dense, and the others make up for it; biases and norms are, in models of any use.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    scores = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        sparse = [name for name in shapes if name not in dense]
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(scores[name] * sizes[name] for name in sparse)
        highest = max(scores[name] for name in sparse)
        if scale * highest <= 1:
            return {name: scale * scores[name] if name in sparse else 1.0 for name in shapes}
        dense |= {name for name in sparse if scores[name] == highest}
    return dict.fromkeys(shapes, 1.0)


METHODS: Mapping[str, Method] = {
    "harmo-dt": HarmoDT(),
    "harmo-dt-published": HarmoDT("harmo-dt-published", published=True),
}
