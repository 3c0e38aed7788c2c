"""Routing: the rule against a slow oracle, the model under it against the dense one with weights set to 0, what it reports."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model.test_prompt_dt import P, T, make_model, make_window, rows, windows64

from m3dt_agent.errors import ConfigError, StageError
from m3dt_agent.model import M3DT, Routing
from m3dt_agent.model.moe import ExpertStack


def slow_kept(routing: Routing, weights: torch.Tensor, real: torch.Tensor) -> list[set[int]]:
    """The experts of every row, one by one."""
    found = []
    for row, mask in zip(weights.tolist(), real.tolist(), strict=True):
        tokens = [token for token, is_real in zip(row, mask, strict=True) if is_real]
        mean = [sum(token[e] for token in tokens) / len(tokens) for e in range(len(tokens[0]))]
        order = sorted(range(len(mean)), key=lambda e: (-mean[e], e))
        chosen, carried = [], 0.0
        for e in order:
            if routing.mass < 1.0 and carried >= routing.mass * sum(mean):
                break
            chosen.append(e)
            carried += mean[e]
        chosen = chosen[: routing.max_experts]
        found.append({e for e in chosen if max(token[e] for token in tokens) >= routing.min_weight} | {order[0]})
    return found


@given(
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.1, 1.0, 5.0]),
    mass=st.sampled_from([1.0, 0.99, 0.7, 0.2]),
    max_experts=st.none() | st.integers(1, 6),
    min_weight=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_the_rule_equals_a_slow_oracle(seed, sharpness, mass, max_experts, min_weight):
    g = torch.Generator().manual_seed(seed)
    weights = (torch.randn(4, 5, 6, generator=g, dtype=torch.float64) * sharpness).softmax(-1)
    real = torch.rand(4, 5, generator=g) < 0.7
    real[:, -1] = True
    routing = Routing(mass, max_experts, min_weight)
    kept = routing.kept(weights, real)
    assert [set(row.nonzero()[:, 0].tolist()) for row in kept] == slow_kept(routing, weights, real)


@pytest.mark.parametrize(
    "changes", [{"mass": 0.0}, {"mass": 1.5}, {"max_experts": 0}, {"min_weight": 1.0}, {"min_weight": -0.1}]
)
def test_a_rule_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Routing(**changes)


@pytest.mark.parametrize("routing", [Routing(max_experts=2), Routing(mass=0.7), Routing(mass=0.8, min_weight=0.1)])
def test_a_routed_model_is_the_dense_one_with_small_weights_set_to_zero(routing, monkeypatch):
    model = make_model(dtype=torch.float64, n_experts=5)
    window, prompt = windows64()
    ours = model(window, prompt, routing)
    usage = model.routing_usage()
    assert usage.kept.shape == usage.dropped.shape == (2, len(window.mask))
    assert (usage.kept < 5).any()
    assert (usage.dropped > 0).any()

    def only_kept(
        experts: ExpertStack, h: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert kept is not None
        assert not weights[~kept[:, None].expand_as(weights)].any()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        return plain(experts, h, weights)

    plain = ExpertStack.forward
    monkeypatch.setattr(ExpertStack, "forward", only_kept)
    torch.testing.assert_close(ours, model(window, prompt, routing), rtol=0, atol=1e-12)
    monkeypatch.undo()
    assert float((ours - model(window, prompt, "mixture")).abs().max()) > 1e-4


def test_all_of_the_mass_is_the_dense_mixture():
    model = make_model(dtype=torch.float64)
    window, prompt = windows64()
    torch.testing.assert_close(model(window, prompt, Routing()), model(window, prompt, "mixture"), rtol=0, atol=1e-12)
    usage = model.routing_usage()
    assert (usage.kept == 3).all()
    assert not usage.dropped.any()


@pytest.mark.parametrize("routing", [Routing(max_experts=1), Routing(mass=0.6)])
def test_rows_do_not_touch_each_other_and_act_equals_forward(routing):
    model = make_model(dtype=torch.float64, n_experts=5)
    window, prompt = windows64()
    together = model(window, prompt, routing)
    with torch.inference_mode():
        for b in range(len(window.mask)):
            alone = model(rows(window, slice(b, b + 1)), rows(prompt, slice(b, b + 1)), routing)
            torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-12)


def test_padding_does_not_decide_which_experts_are_used():
    model = make_model(dtype=torch.float64, n_experts=5)
    window, prompt = make_window(1, T, padded=3, dtype=torch.float64), make_window(2, P, dtype=torch.float64)
    routing = Routing(max_experts=1)
    expected = model(window, prompt, routing)[:, -1]
    noise = torch.randn_like(window.states)
    noisy = dataclasses.replace(window, states=torch.where(window.mask[..., None], window.states, noise))
    torch.testing.assert_close(model(noisy, prompt, routing)[:, -1], expected, rtol=0, atol=1e-12)


def test_the_router_learns_through_a_routed_pass():
    model = make_model(dtype=torch.float64, n_experts=5).requires_grad_(False)
    router = model.router_tensors()
    for parameter in router.values():
        parameter.requires_grad_(True)
    window, prompt = windows64()
    routing = Routing(max_experts=3)
    loss = model(window, prompt, routing).square().sum()
    grads = torch.autograd.grad(loss, list(router.values()))
    name, direction = next(iter(router)), torch.randn_like(grads[0])
    with torch.no_grad():
        step = 1e-6
        router[name].add_(direction, alpha=step)
        higher = model(window, prompt, routing).square().sum()
        router[name].sub_(direction, alpha=2 * step)
        lower = model(window, prompt, routing).square().sum()
    assert float((higher - lower) / (2 * step)) == pytest.approx(float((grads[0] * direction).sum()), rel=1e-5)


def test_what_cannot_be_routed_says_so():
    with pytest.raises(ConfigError, match="no experts"):
        make_model(n_experts=0)(make_window(0, T), make_window(1, P), Routing(max_experts=1))
    with pytest.raises(StageError, match="no pass was routed"):
        make_model().routing_usage()


def test_copies_of_the_kept_experts_follow_the_weights():
    model: M3DT = make_model(dtype=torch.float64, n_experts=5)
    window, prompt = (rows(w, slice(1, 2)) for w in windows64())
    routing = Routing(max_experts=2)
    with torch.inference_mode():
        before = model(window, prompt, routing)
        assert torch.equal(model(window, prompt, routing), before)
    with torch.no_grad():
        for name, parameter in model.expert_tensors().items():
            if name.endswith("b_out"):
                parameter.add_(torch.randn_like(parameter))
    with torch.inference_mode():
        after = model(window, prompt, routing)
    torch.testing.assert_close(after, model(window, prompt, routing), rtol=0, atol=1e-12)
    assert not torch.allclose(after, before)
