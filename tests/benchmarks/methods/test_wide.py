"""Prompt-DT with the M3DT's parameters in one wide feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.methods import Work, method
from benchmarks.methods.base import count_parameters
from m3dt_agent.config import ModelConfig
from m3dt_agent.model import M3DT


@pytest.mark.parametrize(("preset", "n_experts"), [("tiny", 3), ("small", 8), ("paper", 40)])
def test_it_has_the_parameters_of_m3dt_without_routers_and_the_experts_output_biases(preset: str, n_experts: int) -> None:
    with torch.device("meta"):
        routed = M3DT(ModelConfig.preset(preset, n_experts=n_experts))
        wide = M3DT(ModelConfig.preset(preset, n_experts=0, ffn_multiple=4 * (n_experts + 1)))
    routers = sum(parameter.numel() for parameter in routed.router_tensors().values())
    biases = routed.config.n_layers * n_experts * routed.config.embed_dim
    assert count_parameters(wide) == count_parameters(routed) - routers - biases
    if preset == "paper":
        assert (count_parameters(wide) + routers) / count_parameters(routed) > 0.999


def test_it_trains_one_layer_of_the_width_and_continues(make_work: Callable[..., Work]) -> None:
    wide = method("prompt-dt-wide")
    straight = wide.train(make_work("prompt-dt-wide", folder="straight"), "1.00")
    early = wide.train(make_work("prompt-dt-wide", folder="stopped"), "0.75")
    stopped = wide.train(make_work("prompt-dt-wide", folder="stopped"), "1.00")
    weights = [dict(outcome.policy.model.named_parameters()) for outcome in (straight, stopped, early)]
    assert weights[0]["blocks.1.ffn.w_in.weight"].shape == (4 * 8 * 3, 8)
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        assert not torch.equal(weight, weights[2][name]), name
    assert straight.windows == 36
    assert straight.parameters == sum(weight.numel() for weight in weights[0].values())


def test_without_experts_to_make_up_for_it_is_prompt_dt(make_work: Callable[..., Work]) -> None:
    of_both = {}
    for name in ("prompt-dt", "prompt-dt-wide"):
        outcome = method(name).train(make_work(name, folder=name, n_experts=0), "1.00")
        of_both[name] = dict(outcome.policy.model.named_parameters())
    assert of_both["prompt-dt"].keys() == of_both["prompt-dt-wide"].keys()
    for name, weight in of_both["prompt-dt"].items():
        assert torch.equal(weight, of_both["prompt-dt-wide"][name]), name
