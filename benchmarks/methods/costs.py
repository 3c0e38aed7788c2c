"""Counts what a model costs: parameters, and FLOP of matrix products.

FLOP are counted with attention written out, because torch does not count a CPU's fused attention. So the counts are the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from m3dt_agent.data.batches import Batch
from m3dt_agent.data.windows import Window
from m3dt_agent.model import M3DT, ExpertChoice
from m3dt_agent.training.shares import Sampler


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def active_parameters(model: M3DT, experts: int, *, routed: bool = True) -> int:
    """How many parameters one token uses. experts: how many of them it uses. routed: whether it uses the routers."""
    stacked = sum(parameter.numel() for parameter in model.expert_tensors().values())
    routers = 0 if routed else sum(parameter.numel() for parameter in model.router_tensors().values())
    return count_parameters(model) - routers - stacked + stacked * experts // max(model.config.n_experts, 1)


def step_flop(model: M3DT, sampler: Sampler, parameters: Mapping[str, nn.Parameter], choice: ExpertChoice) -> float:
    """FLOP of the matrix products of one training step of `parameters`, forward and backward, with everything else frozen."""
    batch = _batch(model, sampler)
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch.window, batch.prompt, choice).square().sum().backward()
    for parameter in parameters.values():
        parameter.grad = None
    return float(counter.get_total_flops())


@torch.inference_mode()
def action_flop(model: M3DT, sampler: Sampler, choice: ExpertChoice) -> float:
    """FLOP of the matrix products of one action of one slot. Its window is full and its prompt was encoded before."""
    batch = _batch(model, sampler)
    cache = model.encode_prompt(_first(batch.prompt), choice)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.act(_first(batch.window), cache, choice)
    return float(counter.get_total_flops())


def _batch(model: M3DT, sampler: Sampler) -> Batch:
    parameter = next(model.parameters())
    return sampler.sample(0).to(parameter.device, parameter.dtype)


def _first(window: Window) -> Window:
    return Window(window.states[:1], window.actions[:1], window.returns_to_go[:1], window.timesteps[:1], window.mask[:1])
