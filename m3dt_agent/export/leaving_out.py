"""A model without the experts that get hardly any of the router's weight.

Shape legend: K tasks, T steps, L layers, E experts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..data.prompts import Prompt, prompt_window
from ..data.stats import TaskStatistics
from ..model import M3DT
from ..model.transformer import Block


@torch.inference_mode()
def router_shares(model: M3DT, prompts: Sequence[Sequence[Prompt]], statistics: Sequence[TaskStatistics]) -> Tensor:
    """The share of the router's weight that each expert carries on each of K tasks, (K, L, E); each sums to 1 over the experts.

    A bank holds no other steps of a task than its prompts. So the mean is over the steps of the task's last prompt, under its
    first, which is the one that acts.
    """
    prompt = prompt_window([group[0] for group in prompts], statistics, model.config)
    steps = prompt_window([group[-1] for group in prompts], statistics, model.config)
    weights = model.router_weights(steps, prompt)  # (K, T, L, E)
    real = steps.mask[..., None, None]
    return (weights * real).sum(1) / real.sum(1)


def experts_to_keep(shares: Tensor, least_share: float) -> list[list[int]]:
    """For each of L layers the experts that carry `least_share` or more on one of the K tasks, from shares (K, L, E).

    The heaviest of each task is always among them.
    """
    kept = (shares >= least_share) | (shares == shares.amax(-1, keepdim=True))
    return [layer.nonzero()[:, 0].tolist() for layer in kept.any(0)]


def with_experts(model: M3DT, experts: Sequence[Sequence[int]]) -> M3DT:
    """A copy of the model that has only these experts in each of its L layers, numbered anew; the router weighs only them.

    A token's weights are those of before, divided by their sum.
    """
    smaller = copy.deepcopy(model)
    for block, kept in zip(cast("list[Block]", list(smaller.blocks)), experts, strict=True):
        for name, stack in list(block.experts.named_parameters()):
            setattr(block.experts, name, _rows(stack, kept))
        logits = cast("nn.Linear", block.router.layers[-1])
        logits.weight, logits.bias = _rows(logits.weight, kept), _rows(logits.bias, kept)
        if block.router.top_k is not None:
            block.router.top_k = min(block.router.top_k, len(kept))
    return smaller


def _rows(parameter: Tensor, rows: Sequence[int]) -> nn.Parameter:
    return nn.Parameter(parameter.detach()[list(rows)].clone(), requires_grad=False)
