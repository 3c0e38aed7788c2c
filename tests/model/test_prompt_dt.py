"""The whole model: what may and may not change an action, against an untrimmed oracle written out the long way."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ConfigError, ShapeError
from m3dt_agent.model import M3DT

B, T, P = 6, 5, 3
CHOICES = ("none", 1, [2, 0, 1], "mixture")


def make_model(seed: int = 0, *, dtype: torch.dtype = torch.float32, **changes: object) -> M3DT:
    """A tiny model in which nothing is zero, so that every weight shows in the output."""
    torch.manual_seed(seed)
    model = M3DT(ModelConfig.preset("tiny", max_timesteps=50, **changes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def make_window(seed: int, steps: int, *, padded: int = 0, batch: int = B, dtype: torch.dtype = torch.float32) -> Window:
    """Random steps of which the first `padded` are not real, and in row 0 one more."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    mask[:, :padded] = False
    mask[0, : min(padded + 1, steps - 1)] = False
    window = Window(
        torch.randn(batch, steps, 39, generator=g, dtype=torch.float64),
        torch.rand(batch, steps, 8, generator=g, dtype=torch.float64) * 2 - 1,
        torch.randn(batch, steps, 1, generator=g, dtype=torch.float64),
        torch.randint(0, 50, (batch, steps), generator=g),
        mask,
    )
    return window.to(dtype=dtype)


def windows64(seed: int = 3) -> tuple[Window, Window]:
    return make_window(seed, T, dtype=torch.float64), make_window(seed + 1, P, dtype=torch.float64)


def rows(window: Window, index: object) -> Window:
    return Window(*(getattr(window, f.name)[index] for f in dataclasses.fields(window)))


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    )


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def oracle_tokens(window: Window, weights: dict[str, Tensor], name: str) -> Tensor:
    time = weights[f"{name}.timestep.weight"][window.timesteps] if f"{name}.timestep.weight" in weights else 0.0
    fields = {"return_to_go": window.returns_to_go, "state": window.states, "action": window.actions}
    used = [field for field in fields if f"{name}.{field}.weight" in weights]
    embedded = [linear(fields[field], weights, f"{name}.{field}") + time for field in used]
    K = len(used)
    return torch.cat([embedded[i % K][:, i // K : i // K + 1] for i in range(K * window.mask.shape[1])], dim=1)


def oracle_attention(x: Tensor, real: Tensor, weights: dict[str, Tensor], name: str, n_heads: int) -> Tensor:
    q, (k, v) = linear(x, weights, f"{name}.query"), linear(x, weights, f"{name}.key_value").chunk(2, -1)
    out = torch.zeros_like(x)
    width = x.shape[-1] // n_heads
    for b in range(len(x)):
        for h in range(n_heads):
            columns = slice(h * width, (h + 1) * width)
            for s in range(x.shape[1]):
                seen = [i for i in range(s) if real[b, i]] + [s]
                scores = k[b, seen, columns] @ q[b, s, columns] / math.sqrt(width)
                out[b, s, columns] = scores.softmax(0) @ v[b, seen, columns]
    return linear(out, weights, f"{name}.out")


def oracle_experts(h: Tensor, weights: dict[str, Tensor], name: str, choice: object, top_k: int | None) -> Tensor:
    w = {field: weights[f"{name}.experts.{field}"] for field in ("w_in", "b_in", "w_out", "b_out")}

    def expert(e: int, rows: Tensor) -> Tensor:
        return (rows @ w["w_in"][e] + w["b_in"][e]).relu() @ w["w_out"][e] + w["b_out"][e]

    if choice != "mixture":
        chosen = [choice] if isinstance(choice, int) else choice
        return torch.cat([expert(e, group) for e, group in zip(chosen, h.chunk(len(chosen)), strict=True)])
    route = h
    for layer in range(5):
        route = linear(route.relu() if layer else route, weights, f"{name}.router.layers.{layer}")
    kept = route.argsort(-1, descending=True)[..., : top_k or route.shape[-1]]
    scale = torch.zeros_like(route).scatter(-1, kept, route.gather(-1, kept).exp())
    scale = scale / scale.sum(-1, keepdim=True)
    return sum(scale[..., e, None] * expert(e, h) for e in range(route.shape[-1]))


def oracle(model: M3DT, window: Window, prompt: Window, choice: object) -> Tensor:
    """Every token in every layer, attention token by token, experts one after the other."""
    weights, config, K = dict(model.state_dict()), model.config, model.config.tokens_per_step
    tokens = oracle_tokens(window, weights, "embed")
    if config.use_embed_norm:
        tokens = layer_norm(tokens, weights, "embed_norm")
    x = torch.cat((oracle_tokens(prompt, weights, "embed_prompt"), tokens), 1)
    real = torch.cat((prompt.mask, window.mask), 1).repeat_interleave(K, 1)
    for i in range(config.n_layers):
        name = f"blocks.{i}"
        x = x + oracle_attention(layer_norm(x, weights, f"{name}.ln_1"), real, weights, f"{name}.attention", config.n_heads)
        h = layer_norm(x, weights, f"{name}.ln_2")
        update = linear(linear(h, weights, f"{name}.ffn.w_in").relu(), weights, f"{name}.ffn.w_out")
        if choice != "none":
            update = update + oracle_experts(h, weights, name, choice, config.top_k)
        x = (h if choice != "none" and config.residual == "published" else x) + update
    states = layer_norm(x, weights, "final_norm")[:, K * prompt.mask.shape[1] + K - 2 :: K]
    return linear(states, weights, "predict_action").tanh()


WITHOUT = {"use_returns": False, "use_timesteps": False, "use_embed_norm": False}
CHANGES = [
    {},
    {"residual": "published"},
    {"top_k": 2},
    {"n_layers": 1},
    {"use_returns": False},
    {"use_timesteps": False},
    {"use_embed_norm": False},
    WITHOUT,
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_trimmed_forward_equals_the_untrimmed_oracle(choice, changes):
    model = make_model(dtype=torch.float64, **changes)
    window, prompt = make_window(1, T, padded=1, dtype=torch.float64), make_window(2, P, dtype=torch.float64)
    torch.testing.assert_close(model(window, prompt, choice), oracle(model, window, prompt, choice), rtol=0, atol=1e-10)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@given(
    step=st.integers(0, T - 1),
    field=st.sampled_from(["states", "actions", "returns_to_go", "timesteps"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_a_later_token_never_changes_an_earlier_prediction(choice, step, field, seed):
    model, window, prompt = make_model(), make_window(seed, T), make_window(seed + 1, P)
    changed = getattr(window, field).clone()
    changed[:, step:] = getattr(make_window(seed + 2, T), field)[:, step:]
    before = model(window, prompt, choice)
    after = model(dataclasses.replace(window, **{field: changed}), prompt, choice)
    unchanged = step + 1 if field == "actions" else step  # an action comes after its own step's prediction
    torch.testing.assert_close(before[:, :unchanged], after[:, :unchanged], rtol=0, atol=0)
    if unchanged < T:
        assert (before[:, unchanged:] - after[:, unchanged:]).abs().max() > 1e-6


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@given(
    padding=st.integers(1, 7), prompt_padding=st.integers(0, 4), scale=st.sampled_from([0.0, 1.0, 1e4]), seed=st.integers(0, 99)
)
@settings(max_examples=15, deadline=None)
def test_padding_never_changes_an_output(choice, padding, prompt_padding, scale, seed):
    def pad(window: Window, steps: int) -> Window:
        front = make_window(seed + 9, max(steps, 1), dtype=torch.float64)
        front = rows(front, (slice(None), slice(0, steps)))
        floats = [scale * getattr(front, f) for f in ("states", "actions", "returns_to_go")]
        front = Window(*floats, front.timesteps, torch.zeros_like(front.mask))
        return Window(*(torch.cat((getattr(front, f.name), getattr(window, f.name)), 1) for f in dataclasses.fields(window)))

    model, window, prompt = make_model(dtype=torch.float64), *windows64(seed)
    plain, padded = model(window, prompt, choice), model(pad(window, padding), pad(prompt, prompt_padding), choice)
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, padding:][window.mask], plain[window.mask], rtol=0, atol=1e-10)


def test_rows_of_nothing_but_padding_stay_finite_and_give_finite_gradients():
    model, window, prompt = make_model().train(), make_window(0, T), make_window(1, P)
    blank = (
        dataclasses.replace(window, mask=torch.zeros_like(window.mask)),
        dataclasses.replace(prompt, mask=torch.zeros_like(prompt.mask)),
    )
    actions = model(*blank, "mixture")
    actions.sum().backward()
    assert actions.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@given(order=st.permutations(range(3)), top_k=st.sampled_from([None, 2]))
@settings(max_examples=12, deadline=None)
def test_permuting_experts_with_their_router_columns_changes_nothing(order, top_k):
    model, window, prompt = make_model(dtype=torch.float64, top_k=top_k), *windows64()
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in permuted.expert_tensors().items():
            parameter.copy_(model.expert_tensors()[name][list(order)])
        for name, parameter in permuted.router_tensors().items():
            if ".layers.4." in name:
                parameter.copy_(model.router_tensors()[name][list(order)])
    torch.testing.assert_close(permuted(window, prompt, "mixture"), model(window, prompt, "mixture"), rtol=0, atol=1e-12)


def test_top_k_of_all_experts_is_dense_and_of_fewer_is_not():
    dense, window, prompt = make_model(), make_window(0, T), make_window(1, P)
    all_of_them, two = make_model(top_k=3), make_model(top_k=2)
    assert torch.equal(all_of_them(window, prompt, "mixture"), dense(window, prompt, "mixture"))
    assert not torch.allclose(two(window, prompt, "mixture"), dense(window, prompt, "mixture"), atol=1e-3)


@pytest.mark.parametrize("choice", CHOICES[1:], ids=str)
def test_new_experts_leave_the_backbone_bit_identical(choice):
    torch.manual_seed(0)
    model = M3DT(ModelConfig.preset("tiny")).eval()
    window, prompt = make_window(0, T), make_window(1, P)
    assert torch.equal(model(window, prompt, choice), model(window, prompt))
    published = M3DT(ModelConfig.preset("tiny", residual="published")).eval()
    assert not torch.equal(published(window, prompt, choice), published(window, prompt))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("changes", [{"n_layers": 1}, {"n_layers": 3}, WITHOUT], ids=str)
@given(steps=st.integers(1, T), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_act_with_a_cached_prompt_equals_the_full_forward(choice, changes, steps, seed):
    model, window, prompt = make_model(**changes), make_window(seed, steps), make_window(seed + 1, P)
    action = model.act(window, model.encode_prompt(prompt, choice), choice)
    torch.testing.assert_close(action, model(window, prompt, choice)[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("changes", [{"n_layers": 1}, {}, WITHOUT], ids=str)
def test_shared_prompts_give_the_actions_and_gradients_of_a_prompt_per_window(choice, changes):
    model = make_model(dtype=torch.float64, **changes).requires_grad_(True)
    window, prompts = windows64()
    of = torch.tensor([1, 0, 3, 3, 4, 5] if choice == CHOICES[2] else [2, 0, 0, 5, 2, 2])  # three groups of two, or all
    per_window = model(window, rows(prompts, of), choice)
    gradients = torch.autograd.grad(per_window.square().sum(), list(model.parameters()), allow_unused=True)
    shared = model.forward_shared(window, prompts, of, choice)
    torch.testing.assert_close(shared, per_window, rtol=0, atol=1e-12)
    again = torch.autograd.grad(shared.square().sum(), list(model.parameters()), allow_unused=True)
    for ours, expected in zip(again, gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("choice", ["none", 2, "mixture"], ids=str)
def test_act_batched_equals_one_by_one(choice):
    model, window, prompt = make_model(), make_window(0, T, padded=1), make_window(1, P)
    cache = model.encode_prompt(prompt, choice)
    together = model.act(window, cache, choice)
    for i in range(B):
        alone = model.act(rows(window, slice(i, i + 1)), model.encode_prompt(rows(prompt, slice(i, i + 1)), choice), choice)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_stacked_experts_equal_each_alone_forward_and_gradients():
    model, window, prompt = make_model(dtype=torch.float64), *windows64()
    model.requires_grad_(False)
    for parameter in model.expert_tensors().values():
        parameter.requires_grad_(True)
    order = [2, 0, 1]
    stacked = model(window, prompt, order)
    stacked.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.expert_tensors().items()}
    for k, e in enumerate(order):
        model.zero_grad()
        group = slice(k * B // 3, (k + 1) * B // 3)
        alone = model(rows(window, group), rows(prompt, group), e)
        torch.testing.assert_close(stacked[group], alone, rtol=0, atol=1e-10)
        alone.square().sum().backward()
        for name, parameter in model.expert_tensors().items():
            torch.testing.assert_close(gradients[name][e], parameter.grad[e], rtol=0, atol=1e-10)
            assert gradients[name][e].abs().max() > 1e-6


def test_what_is_not_used_changes_no_action_and_has_no_weights():
    model, window, prompt = make_model(**WITHOUT), make_window(0, T), make_window(1, P)
    assert not [name for name in model.state_dict() if "return_to_go" in name or "timestep" in name]
    assert (model.config.tokens_per_step, model.config.n_tokens) == (2, 2 * (P + T) - 1)
    other = dataclasses.replace(window, returns_to_go=window.returns_to_go + 5, timesteps=window.timesteps.flip(1))
    assert torch.equal(model(other, prompt, "mixture"), model(window, prompt, "mixture"))
    assert not torch.equal(make_model()(other, prompt), make_model()(window, prompt))


@pytest.mark.parametrize("changes", [{}, WITHOUT], ids=str)
def test_router_weights_are_those_of_the_state_tokens(changes):
    model, window, prompt = make_model(n_layers=3, top_k=2, **changes), make_window(0, T), make_window(1, P)
    K = model.config.tokens_per_step
    weights = model.router_weights(window, prompt)
    assert weights.shape == (B, T, 3, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T, 3))
    assert ((weights > 0).sum(-1) == 2).all()
    x = torch.cat((model.embed_prompt(prompt), model.embed_norm(model.embed(window))), 1)
    real = torch.cat((prompt.mask, window.mask), 1).repeat_interleave(K, 1)
    attended = oracle_attention(model.blocks[0].ln_1(x), real, dict(model.state_dict()), "blocks.0.attention", 2)
    expected = model.blocks[0].router(model.blocks[0].ln_2(x + attended))[:, K * P + K - 2 :: K]
    torch.testing.assert_close(weights[:, :, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_bfloat16_autocast_is_close_to_float32_and_trains(choice):
    model, window, prompt = make_model(), make_window(0, T), make_window(1, P)
    exact = model(window, prompt, choice)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(window, prompt, choice)
        cached = model.act(window, model.encode_prompt(prompt, choice), choice)
    assert (rough - exact).abs().mean() < 0.03
    assert (cached - rough[:, -1]).abs().mean() < 0.03
    rough.float().square().sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    assert model.blocks[0].ffn.w_in.weight.grad.isfinite().all()


def test_dropout_follows_the_global_generator_and_only_in_training():
    model, window, prompt = make_model().train(), make_window(0, T), make_window(1, P)
    torch.manual_seed(1)
    first = model(window, prompt, "mixture")
    torch.manual_seed(1)
    assert torch.equal(model(window, prompt, "mixture"), first)
    assert not torch.equal(model(window, prompt, "mixture"), first)
    model.eval()
    assert torch.equal(model(window, prompt, "mixture"), model(window, prompt, "mixture"))


def test_parts_cover_the_model_once():
    model = make_model()
    parts = [model.backbone_tensors(), model.expert_tensors(), model.router_tensors()]
    assert sum(len(part) for part in parts) == len(dict(model.named_parameters()))
    assert {name for part in parts for name in part} == set(dict(model.named_parameters()))
    assert all(p.shape[0] == 3 for p in parts[1].values())
    bare = M3DT(ModelConfig.preset("tiny", n_experts=0))
    assert bare.backbone_tensors().keys() == parts[0].keys()
    assert not bare.expert_tensors()
    assert not bare.router_tensors()


def test_loading_parts_and_experts_reproduces_the_model():
    source, target = make_model(0), make_model(1)
    window, prompt = make_window(0, T), make_window(1, P)
    target.load_tensors(source.backbone_tensors())
    assert torch.equal(target(window, prompt), source(window, prompt))
    for e in range(3):
        one = source.expert_slice(e)
        assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in one.values())
        target.load_expert(e, one)
    target.load_tensors(source.router_tensors())
    assert torch.equal(target(window, prompt, "mixture"), source(window, prompt, "mixture"))
    everything = make_model(2)
    everything.load_tensors({name: p.detach().clone() for name, p in source.named_parameters()})
    assert torch.equal(everything(window, prompt, "mixture"), source(window, prompt, "mixture"))


def test_loading_what_does_not_fit_names_it_and_changes_nothing():
    model = make_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    part = {name: p.detach() + 1 for name, p in model.backbone_tensors().items()}
    missing = {name: p for name, p in part.items() if name != "final_norm.bias"}
    with pytest.raises(ConfigError, match=r"missing: final_norm\.bias"):
        model.load_tensors(missing)
    with pytest.raises(ConfigError, match=r"unknown tensors: blocks\.9\.nonsense"):
        model.load_tensors({**part, "blocks.9.nonsense": torch.zeros(1)})
    with pytest.raises(ShapeError, match=r"predict_action\.bias must have shape \(8,\); got \(7,\)"):
        model.load_tensors({**part, "predict_action.bias": torch.zeros(7)})
    with pytest.raises(ConfigError, match="missing"):
        model.load_tensors({})
    with pytest.raises(ConfigError, match=r"expert 1: 8 tensors are missing: blocks.0.experts.b_in"):
        model.load_expert(1, {})
    with pytest.raises(ConfigError, match="numbered from 0"):
        model.expert_slice(3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("experts", ["router", 3, -1, [0, 3], []], ids=str)
def test_unknown_experts_are_named(experts):
    with pytest.raises(ConfigError, match="experts must be"):
        make_model()(make_window(0, T), make_window(1, P), experts)


def test_a_backbone_alone_refuses_experts():
    model = M3DT(ModelConfig.preset("tiny", n_experts=0))
    with pytest.raises(ConfigError, match="this model has no experts"):
        model(make_window(0, T), make_window(1, P), "mixture")


def test_shapes_that_do_not_fit_are_named():
    model, window, prompt = make_model(), make_window(0, T), make_window(1, P)
    with pytest.raises(ShapeError, match=r"window.states must have shape \(6, 5, 39\)"):
        model(dataclasses.replace(window, states=window.states[..., :38]), prompt)
    with pytest.raises(ShapeError, match=r"prompt.timesteps"):
        model(window, dataclasses.replace(prompt, timesteps=prompt.timesteps[:, 1:]))
    with pytest.raises(ShapeError, match="window has 6 rows, prompt has 5"):
        model(window, rows(prompt, slice(0, 5)))
    with pytest.raises(ShapeError, match="window has 5 rows, the prompt cache 6"):
        model.act(rows(window, slice(0, 5)), model.encode_prompt(prompt))
    with pytest.raises(ShapeError, match="2 experts need a batch of as many equal groups; got 5 rows"):
        model(rows(window, slice(0, 5)), rows(prompt, slice(0, 5)), [0, 1])
