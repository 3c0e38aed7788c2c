"""M3DT without one of its parts differs from M3DT in that part."""

from __future__ import annotations

import pytest
import torch
from method_runs import MakeWork, equal, model_of, part, train, weights

from benchmarks.methods import base
from benchmarks.methods.ablations import NoisyRouter, OtherThirdStage
from m3dt_agent.errors import ConfigError
from m3dt_agent.evaluation import router_usage
from m3dt_agent.model.moe import Router


def test_with_one_group_of_all_tasks_all_tasks_is_m3dt(make_work: MakeWork) -> None:
    all_tasks, grouped = (weights(train(make_work(n, folder=n, n_experts=1))) for n in ("m3dt-all-tasks", "m3dt-random"))
    assert equal(all_tasks, grouped)


def test_experts_of_all_tasks_differ_from_those_of_groups_and_from_each_other(make_work: MakeWork) -> None:
    all_tasks, grouped = (weights(train(make_work(n, folder=n))) for n in ("m3dt-all-tasks", "m3dt-random"))
    for name, tensor in part(all_tasks, "experts").items():
        assert not torch.equal(tensor[0], tensor[1])
        assert not torch.equal(tensor, grouped[name])
    shared = {name for name in grouped if ".experts." not in name and ".router." not in name}
    assert all(torch.equal(all_tasks[name], grouped[name]) for name in shared)


def test_unfrozen_differs_from_m3dt_in_the_third_run_only(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = weights(train(make_work("m3dt-random", folder="usual")))
    same = weights(OtherThirdStage("random", lambda run: run).train(make_work("m3dt-random", folder="same"), "1.00"))
    assert equal(usual, same)
    unfrozen = weights(train(make_work("m3dt-random-unfrozen", folder="unfrozen")))
    changed = {name for name in usual if not torch.equal(usual[name], unfrozen[name])}
    assert changed == {*part(usual, "experts"), *part(usual, "router")}


def test_no_grouping_builds_on_prompt_dts_backbone_and_end_to_end_moves_everything(make_work: MakeWork) -> None:
    backbone = weights(train(make_work("prompt-dt", folder="prompt-dt")))
    joint = weights(train(make_work("m3dt-no-grouping", folder="joint")))
    assert all(torch.equal(joint[name], tensor) for name, tensor in backbone.items())
    work = make_work("m3dt-end-to-end", folder="end-to-end")
    first, trained = base.new_model(work, work.model_config()), weights(train(work))
    for name, tensor in first.state_dict().items():
        assert not torch.equal(tensor, trained[name]), name
    assert all((tensor[:, 0] != 0).any() and (tensor[:, 1] != 0).any() for tensor in [joint["blocks.0.experts.w_out"]])


def test_the_noisy_router_draws_in_training_and_is_the_plain_one_when_it_acts(make_work: MakeWork) -> None:
    torch.manual_seed(0)
    noisy, plain, h = NoisyRouter(8, 6, 4), Router(8, 6, 4), torch.randn(50, 8)
    plain.load_state_dict({name: t for name, t in noisy.state_dict().items() if not name.startswith("noise")})
    first, second = noisy(h), noisy(h)
    assert not torch.equal(first, second)
    assert ((first > 0).sum(-1) == 4).all()
    torch.testing.assert_close(first.sum(-1), torch.ones(50))
    first.square().sum().backward()
    assert noisy.noise.weight.grad is not None
    assert noisy.noise.weight.grad.abs().max() > 0
    torch.testing.assert_close(noisy.eval()(h), plain(h), rtol=0, atol=0)


def test_top_k_trains_the_noise_and_counts_k_experts_as_active(make_work: MakeWork) -> None:
    outcome = train(make_work("m3dt-top-k", n_experts=3, top_k=2))
    model = model_of(outcome)
    biases = [p for name, p in model.router_tensors().items() if name.endswith("noise.bias")]  # zero at first
    assert len(biases) == 2
    assert all((bias != 0).any() for bias in biases)
    usage = router_usage(outcome.policy, make_work("m3dt-top-k").data)  # type: ignore[arg-type]
    assert all(sum(found) == pytest.approx(1.0) for found in usage.values())
    with pytest.raises(ConfigError, match="top_k"):
        train(make_work("m3dt-top-k", folder="too few experts"))
    expert = sum(p[0].numel() for p in model.expert_tensors().values())
    assert outcome.active_parameters == outcome.parameters - expert
