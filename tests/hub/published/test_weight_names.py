"""Which published tensor is which of ours: published outputs are reproduced, and every model comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ConfigError, ShapeError
from m3dt_agent.hub.published.weight_names import from_published, published_config, to_published
from m3dt_agent.model import M3DT

CONFIG = ModelConfig(32, 2, 4, n_experts=3, context_length=20, prompt_length=5, residual="published")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[2] / "golden" / "published_m3dt_tiny.safetensors")


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def window(tensors: dict[str, Tensor], prefix: str = "") -> Window:
    fields = ("states", "actions", "returns_to_go", "timesteps")
    return Window(*(tensors[f"input/{prefix}{field}"] for field in fields), tensors[f"input/{prefix}mask"].bool())


@settings(deadline=None, max_examples=20)
@given(
    st.builds(
        ModelConfig,
        embed_dim=st.sampled_from([2, 6]),
        n_layers=st.integers(1, 3),
        n_heads=st.just(2),
        n_experts=st.integers(0, 3),
        context_length=st.just(20),
        prompt_length=st.just(5),
        max_timesteps=st.integers(1, 9),
        state_dim=st.integers(1, 9),
        act_dim=st.integers(1, 4),
        residual=st.just("published"),
    )
)
def test_any_model_comes_back_from_its_published_form(config: ModelConfig) -> None:
    model = M3DT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_()  # no two parts alike
    published = to_published(model)
    assert published_config(published, n_heads=2) == config
    assert equal(from_published(published, config).state_dict(), model.state_dict())


@pytest.mark.parametrize(("experts", "output"), [("none", "backbone"), (0, "expert0"), ("mixture", "moe")])
def test_published_weights_give_the_published_outputs(tensors, experts, output):
    model, real = from_published(tensors, CONFIG).eval(), window(tensors)
    actions = model(real, window(tensors, "prompt_"), experts)
    expected = tensors[f"output/{output}_action_preds"]
    torch.testing.assert_close(actions[real.mask], expected[real.mask], rtol=0, atol=1e-5)


def test_the_backbone_alone_needs_no_experts_in_the_file(tensors):
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone/")}
    model, real = from_published(backbone, ModelConfig(32, 2, 4, 0, 20, 5)).eval(), window(tensors)
    expected = tensors["output/backbone_action_preds"]
    torch.testing.assert_close(model(real, window(tensors, "prompt_"))[real.mask], expected[real.mask], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="expert_0/block_0"):
        from_published(backbone, CONFIG)


def test_the_standard_residual_is_another_function(tensors):
    model = from_published(tensors, ModelConfig(32, 2, 4, 3, 20, 5, residual="standard")).eval()
    difference = model(window(tensors), window(tensors, "prompt_"), "mixture") - tensors["output/moe_action_preds"]
    assert difference.abs().max() > 1e-2


def test_what_does_not_fit_is_named(tensors):
    with pytest.raises(ShapeError, match=r"backbone/embed_timestep\.weight must have shape \(1000, 64\); got \(1000, 32\)"):
        from_published(tensors, ModelConfig(64, 2, 4, 3, 20, 5))
    with pytest.raises(ConfigError, match=r"backbone/transformer\.h\.2"):
        from_published(tensors, ModelConfig(32, 3, 4, 3, 20, 5))
    damaged = {name: tensor for name, tensor in tensors.items() if name != "router/block_1.router.fc_new.bias"}
    with pytest.raises(ConfigError, match=r"router/block_1\.router\.fc_new\.bias"):
        from_published(damaged, CONFIG)


PUBLISHED_COUNTS = {  # (embed_dim, n_experts); docs/architecture.md#sources-of-numbers
    (128, 0): 1_465_520,
    (256, 0): 5_290_288,
    (512, 0): 20_017_712,
    (1024, 0): 77_784_112,
    (1536, 0): 173_299_248,
    (256, 8): 47_865_184,
    (256, 24): 98_368_960,
    (256, 40): 148_872_736,
    (256, 48): 174_124_624,
}


@pytest.mark.parametrize(("size", "published"), PUBLISHED_COUNTS.items(), ids=str)
def test_parameter_counts_are_the_published_ones_less_three_unused_tensors(size, published):
    D, n_experts = size
    with torch.device("meta"):
        model = M3DT(ModelConfig(D, 6, 8, n_experts, 20, 5))
    unused = D + (39 * D + 39) + (D + 1)  # wte, predict_state, predict_return
    assert sum(p.numel() for p in model.parameters()) == published - unused


@pytest.mark.parametrize("part", ["use_returns", "use_timesteps", "use_embed_norm"])
def test_a_model_that_lacks_a_part_of_theirs_is_refused(part: str) -> None:
    config = ModelConfig.preset("tiny", **{part: False})
    for convert in (lambda: to_published(M3DT(config)), lambda: from_published({}, config)):
        with pytest.raises(ConfigError, match=f"authors' model has returns.*{part}=False"):
            convert()
