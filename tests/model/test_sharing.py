"""A second model with the same weights: it computes the same, and keeps what its passes leave behind to itself."""

from __future__ import annotations

import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.model import M3DT, Routing, with_same_weights
from m3dt_agent.training.planning.cost import _random_window

CONFIG = ModelConfig.preset("tiny", max_timesteps=50)


def test_it_has_the_same_tensors_and_its_own_modules() -> None:
    model = M3DT(CONFIG).eval()
    model.register_buffer("scale", torch.ones(1))
    other = with_same_weights(model)
    ours, theirs = (dict([*one.named_parameters(), *one.named_buffers()]) for one in (model, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert {id(module) for module in model.modules()}.isdisjoint({id(module) for module in other.modules()})
    assert (type(other), other.config, other.training) == (M3DT, CONFIG, False)


def test_a_pass_of_one_leaves_nothing_in_the_other() -> None:
    model = M3DT(CONFIG).eval()
    window, prompt = (_random_window(CONFIG, 2, T) for T in (CONFIG.context_length, CONFIG.prompt_length))
    with torch.inference_mode():
        expected = model(window, prompt, Routing(max_experts=1))
        other = with_same_weights(model)
        assert all(block.usage is None for block in other._layers)
        assert torch.equal(other(window, prompt, Routing(max_experts=1)), expected)
        other(window, prompt, Routing(max_experts=2))
    assert (model.routing_usage().kept == 1).all()
    assert (other.routing_usage().kept == 2).all()
