"""Published weights give the published outputs, and our models have the published number of parameters."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ConfigError, ShapeError
from m3dt_agent.hub.convert_weights import from_published
from m3dt_agent.model import M3DT

GOLDEN = Path(__file__).parents[1] / "golden" / "published_m3dt_tiny.safetensors"
CONFIG = ModelConfig(32, 2, 4, n_experts=3, context_length=20, prompt_length=5, residual="published")


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN)


def window(tensors, prefix=""):
    fields = ("states", "actions", "returns_to_go", "timesteps")
    return Window(*(tensors[f"input/{prefix}{field}"] for field in fields), tensors[f"input/{prefix}mask"].bool())


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
    with pytest.raises(ShapeError, match=r"embed\.timestep\.weight must have shape \(1000, 64\); got \(1000, 32\)"):
        from_published(tensors, ModelConfig(64, 2, 4, 3, 20, 5))
    with pytest.raises(ConfigError, match=r"backbone/transformer\.h\.2"):
        from_published(tensors, ModelConfig(32, 3, 4, 3, 20, 5))
    damaged = {name: tensor for name, tensor in tensors.items() if name != "router/block_1.router.fc_new.bias"}
    with pytest.raises(ConfigError, match=r"router/block_1\.router\.fc_new\.bias"):
        from_published(damaged, CONFIG)


PUBLISHED_COUNTS = {  # (embed_dim, n_experts): DESIGN section 5
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
