"""Helpers for tests of the benchmark's methods: train a cell's method, compare weights, and make the models of two methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.methods import Outcome, Work, base, method
from benchmarks.methods.big_experts import BigExperts
from benchmarks.methods.sample_router import SampleRouted
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Batch
from m3dt_agent.model import M3DT

MakeWork = Callable[..., Work]


def train(work: Work) -> Outcome:
    """All of a method, in the fractions in which it is evaluated."""
    chosen = method(work.cell.method)
    return [chosen.train(work, fraction) for fraction in chosen.fractions][-1]


def model_of(outcome: Outcome) -> M3DT:
    assert isinstance(outcome.policy, M3DTAgent)
    return outcome.policy.model


def weights(outcome: Outcome) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_of(outcome).state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def part(tensors: dict[str, Tensor], word: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if f".{word}." in name}


def batch_of(work: Work, config: ModelConfig) -> Batch:
    return base.run_sampler(work, config, work.train_config("backbone")).sample(0)


def lively(model: M3DT) -> M3DT:
    """Weights of a few times the usual size, so that nothing is near zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if "experts" in name or parameter.ndim > 1 else 0.05)
    return model.eval()


def big_model(config: ModelConfig) -> BigExperts:
    torch.manual_seed(1)
    plain = dataclasses.replace(config, n_experts=0)
    return BigExperts(lively(M3DT(plain)), [lively(M3DT(plain)) for _ in range(config.n_experts)]).eval()


def sample_model(config: ModelConfig) -> SampleRouted:
    torch.manual_seed(1)
    model = lively(SampleRouted(config))
    assert isinstance(model, SampleRouted)
    return model
