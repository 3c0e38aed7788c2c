"""Experts and router alone: tiles of experts against a loop over experts, with gradients; top-k routing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3dt_agent.model import moe
from m3dt_agent.model.moe import ExpertStack, Router


def make_experts(n_experts: int, embed_dim: int, dtype: torch.dtype = torch.float64) -> ExpertStack:
    torch.manual_seed(n_experts * 100 + embed_dim)
    experts = ExpertStack(n_experts, embed_dim).to(dtype)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.add_(torch.randn_like(parameter))
    return experts


def loop_over_experts(experts: ExpertStack, h: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros_like(h)
    for e in range(len(experts.b_in)):
        hidden = (h @ experts.w_in[e] + experts.b_in[e]).clamp(min=0)
        total = total + weights[..., e : e + 1] * (hidden @ experts.w_out[e] + experts.b_out[e])
    return total


@given(n_experts=st.integers(1, 5), embed_dim=st.sampled_from([1, 4, 6]), batch=st.integers(1, 3), tokens=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_mixture_equals_a_loop_over_experts_with_all_gradients(n_experts, embed_dim, batch, tokens):
    experts = make_experts(n_experts, embed_dim)
    h = torch.randn(batch, tokens, embed_dim, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(batch, tokens, n_experts, dtype=torch.float64, requires_grad=True)
    inputs = [h, weights, *experts.parameters()]
    ours, expected = experts(h, weights), loop_over_experts(experts, h, weights)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    direction = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frozen", ["experts", "inputs"])
def test_mixture_gives_gradients_only_to_what_trains(frozen):
    experts = make_experts(3, 4).requires_grad_(frozen != "experts")
    h, weights = (torch.rand(7, n, dtype=torch.float64, requires_grad=frozen != "inputs") for n in (4, 3))
    experts(h, weights).sum().backward()
    assert all((p.grad is None) == (frozen == "experts") for p in experts.parameters())
    assert all((x.grad is None) == (frozen == "inputs") for x in (h, weights))


@given(
    n_experts=st.integers(1, 5),
    batch=st.integers(1, 4),
    seed=st.integers(0, 1000),
    needs=st.sampled_from(["both", "h", "weights"]),
)
@settings(max_examples=40, deadline=None)
def test_frozen_experts_of_some_rows_equal_a_loop_with_gradients(n_experts, batch, seed, needs):
    experts = make_experts(n_experts, 4).requires_grad_(False)
    torch.manual_seed(seed)
    kept = torch.rand(batch, n_experts) < 0.6
    h = torch.randn(batch, 3, 4, dtype=torch.float64, requires_grad=needs != "weights")
    weights = (torch.rand(batch, 3, n_experts, dtype=torch.float64) * kept[:, None]).requires_grad_(needs != "h")
    ours, expected = experts(h, weights, kept), loop_over_experts(experts, h, weights)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    inputs, direction = [x for x in (h, weights) if x.requires_grad], torch.randn_like(expected)
    got, want = (torch.autograd.grad((y * direction).sum(), inputs) for y in (ours, expected))
    for x, a, b in zip(inputs, got, want, strict=True):
        what_counts = kept[:, None] if x is weights else True  # a weight that must be 0 learns nothing
        torch.testing.assert_close(a, b * what_counts, rtol=0, atol=1e-10)
    with torch.inference_mode():
        torch.testing.assert_close(experts(h, weights, kept), expected.detach(), rtol=0, atol=1e-10)


def test_frozen_experts_keep_their_precision_under_autocast():
    experts = make_experts(3, 8, torch.float32).requires_grad_(False)
    h, weights = (torch.randn(5, 2, n, requires_grad=True) for n in (8, 3))
    plain = torch.autograd.grad(experts(h, weights).sum(), [h, weights])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = experts(h, weights)
    assert mixed.dtype == torch.float32
    for a, b in zip(torch.autograd.grad(mixed.sum(), [h, weights]), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tile", [2, 3, 5])
def test_tiles_of_any_size_give_the_same_result(monkeypatch, tile):
    experts = make_experts(5, 4)
    h, weights = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    monkeypatch.setattr(moe, "TILE_BYTES", tile * 6 * 16 * 8)
    assert experts._tile_size(torch.zeros(6, 4)) == tile
    torch.testing.assert_close(experts(h, weights), loop_over_experts(experts, h, weights), rtol=0, atol=1e-10)
    h = torch.randn(10, 3, 4, dtype=torch.float64)
    one_hot = torch.eye(5, dtype=torch.float64).flip(0).repeat_interleave(2, 0)[:, None].expand(-1, 3, -1)
    grouped = experts.grouped(h, (4, 3, 2, 1, 0))
    torch.testing.assert_close(grouped, loop_over_experts(experts, h, one_hot), rtol=0, atol=1e-10)


@given(chosen=st.permutations(range(4)), count=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_grouped_experts_equal_each_alone_with_gradients(chosen, count):
    experts, chosen = make_experts(4, 3), tuple(chosen[:count])
    h = torch.randn(2 * count, 5, 3, dtype=torch.float64)
    ours = experts.grouped(h, chosen)
    weights = torch.nn.functional.one_hot(torch.tensor(chosen), 4).repeat_interleave(2, 0)[:, None].expand(-1, 5, -1)
    expected = loop_over_experts(experts, h, weights.double())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    got = torch.autograd.grad(ours.square().sum(), list(experts.parameters()))
    want = torch.autograd.grad(expected.square().sum(), list(experts.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_new_expert_adds_nothing_but_can_learn():
    experts = ExpertStack(3, 4)
    h = torch.randn(5, 4)
    assert not experts(h, torch.rand(5, 3)).any()
    assert not experts.grouped(h.expand(3, 5, 4), (0, 1, 2)).any()
    experts(h, torch.rand(5, 3)).sum().backward()
    assert experts.w_out.grad.any()
    assert 0.01 < experts.w_in.std() < 0.04


@given(top_k=st.integers(1, 6), ties=st.booleans())
@settings(max_examples=20, deadline=None)
def test_top_k_weights_are_a_softmax_over_the_heaviest(top_k, ties):
    torch.manual_seed(top_k)
    router = Router(8, 6, top_k)
    dense = Router(8, 6, None)
    dense.load_state_dict(router.state_dict())
    if ties:
        for parameter in [*router.parameters(), *dense.parameters()]:
            parameter.data.zero_()
    h = torch.randn(4, 7, 8) * 10
    weights, all_weights = router(h), dense(h)
    assert ((weights > 0).sum(-1) == top_k).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 7))
    kept = all_weights.where(weights > 0, torch.zeros(()))
    torch.testing.assert_close(weights, kept / kept.sum(-1, keepdim=True))
    assert (kept.sum(-1) >= all_weights.topk(top_k).values.sum(-1) - 1e-6).all()
    if top_k == 6:
        assert torch.equal(weights, all_weights)


def test_router_widths_are_the_published_ones():
    widths = [tuple(layer.weight.shape) for layer in Router(16, 5, None).layers]
    assert widths == [(64, 16), (64, 64), (64, 64), (32, 64), (5, 32)]
