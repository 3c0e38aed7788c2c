"""Experts that come later: they share the backbone, and widen what their tasks need."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.windows import Window
from m3dt_agent.errors import ConfigError, InvalidValueError, ShapeError
from m3dt_agent.model import M3DT
from m3dt_agent.model.grown import model_to_act, new_parts, widen_for_training

NARROW = ModelConfig(16, 2, 2, n_experts=1, context_length=4, prompt_length=2, max_timesteps=20, state_dim=5, act_dim=2)
WIDE = dataclasses.replace(NARROW, state_dim=9, act_dim=3, max_timesteps=30)


def window(config: ModelConfig, steps: int) -> Window:
    shape = (3, steps)
    return Window(
        torch.randn(*shape, config.state_dim),
        torch.randn(*shape, config.act_dim),
        torch.randn(*shape, 1),
        torch.randint(config.max_timesteps, shape),
        torch.ones(shape, dtype=torch.bool),
    )


@pytest.mark.parametrize("shape", [{}, {"use_timesteps": False}, {"use_returns": False, "use_embed_norm": False}], ids=str)
@pytest.mark.parametrize("wide", [WIDE, NARROW], ids=["wider", "as wide"])
def test_the_model_that_acts_is_the_one_that_was_trained(wide: ModelConfig, shape: dict[str, bool]) -> None:
    torch.manual_seed(0)
    narrow, wide = dataclasses.replace(NARROW, **shape), dataclasses.replace(wide, **shape)
    bank = M3DT(dataclasses.replace(narrow, n_experts=0)).eval()
    trained = M3DT(narrow).eval()
    trained.load_tensors(dict(bank.named_parameters()))
    before = {name: tensor.clone() for name, tensor in bank.named_parameters()}
    parameters = trained.expert_tensors() | widen_for_training(trained, wide, new_parts(trained, wide))
    assert {tuple(p.shape[:1]) for p in parameters.values()} == {(1,)}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(std=0.3)
    read, prompt = window(wide, 4), window(wide, 2)
    found = trained(read, prompt, (0,))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    acts = model_to_act(bank, wide, {name: parameter.detach()[0] for name, parameter in parameters.items()})
    assert torch.equal(acts(read, prompt, 0), found)
    cache = acts.encode_prompt(prompt, 0)
    assert torch.allclose(acts.act(read, cache, 0), found[:, -1], atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bank.named_parameters())
    shared = {id(p) for p in bank.parameters()} & {id(p) for p in acts.parameters()}
    assert len(shared) >= len(list(bank.parameters())) - 8
    assert all(p.requires_grad for p in bank.parameters())


def test_tensors_that_do_not_fit_are_named() -> None:
    bank = M3DT(dataclasses.replace(NARROW, n_experts=0)).eval()
    tensors = M3DT(NARROW).expert_slice(0) | new_parts(bank, WIDE)
    model_to_act(bank, WIDE, tensors)
    for change, kind, told in (
        ({"wider.embed.state.weight": torch.zeros(4, 16)}, ShapeError, r"must have shape \(16, 4\)"),
        ({"wider.embed.norm.weight": torch.zeros(4)}, ConfigError, "1 unknown tensors"),
        ({"wider.predict_action.bias": torch.tensor([torch.inf])}, InvalidValueError, "holds NaN or infinity"),
    ):
        with pytest.raises(kind, match=told):
            model_to_act(bank, WIDE, tensors | change)
    with pytest.raises(ConfigError, match="8 tensors are missing"):
        model_to_act(bank, WIDE, M3DT(NARROW).expert_slice(0))
