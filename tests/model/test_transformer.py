"""One block: queries that are a part of the tokens, and keys and values from before, change nothing but the amount of work."""

import pytest
import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.model.transformer import ALL_TOKENS, Block, KeyValues

B, S, D = 2, 9, 32


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = Block(ModelConfig.preset("tiny", embed_dim=D)).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return block


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, S, D, dtype=torch.float64), torch.ones(S, S, dtype=torch.bool).tril().expand(B, 1, S, S)


@pytest.mark.parametrize("choice", ["none", "mixture", (1,), (2, 0)], ids=str)
@pytest.mark.parametrize("queries", [slice(1, None, 3), slice(-1, None), slice(4, 6)], ids=str)
def test_fewer_queries_give_the_same_outputs(block, choice, queries):
    x, mask = inputs()
    torch.testing.assert_close(block(x, mask[:, :, queries], choice, queries), block(x, mask, choice)[:, queries])


@pytest.mark.parametrize("split", [1, 4, 8])
def test_past_keys_and_values_give_the_same_outputs(block, split):
    x, mask = inputs()
    past = block.keys_values(x[:, :split])
    assert past.keys.shape == past.values.shape == (B, 2, split, D // 2)
    late = block(x[:, split:], mask[:, :, split:], "none", ALL_TOKENS, KeyValues(*past))
    torch.testing.assert_close(late, block(x, mask, "none")[:, split:])


def test_published_residual_continues_from_the_norm_only_with_experts(block):
    published = Block(ModelConfig.preset("tiny", embed_dim=D, residual="published")).double().eval()
    published.load_state_dict(block.state_dict())
    x, mask = inputs()
    assert torch.equal(published(x, mask, "none"), block(x, mask, "none"))
    attended = x + block.attention(block.ln_1(x), mask, ALL_TOKENS, None)
    difference = block(x, mask, "mixture") - published(x, mask, "mixture")
    torch.testing.assert_close(difference, attended - block.ln_2(attended))


def test_the_width_of_the_ffn_is_the_backbones_alone():
    torch.manual_seed(0)
    config = ModelConfig.preset("tiny", embed_dim=D, ffn_multiple=6)
    wide, plain = Block(config), Block(ModelConfig.preset("tiny", embed_dim=D))
    shapes = {name: p.shape for name, p in wide.named_parameters()}
    differ = {name for name, p in plain.named_parameters() if p.shape != shapes[name]}
    assert differ == {"ffn.w_in.weight", "ffn.w_in.bias", "ffn.w_out.weight"}
    assert shapes["ffn.w_in.weight"] == (6 * D, D)
    assert shapes["experts.w_in"] == (3, D, 4 * D)
    x, _ = inputs()
    ffn = wide.ffn.double()
    expected = (x @ ffn.w_in.weight.T + ffn.w_in.bias).clamp(min=0) @ ffn.w_out.weight.T + ffn.w_out.bias
    torch.testing.assert_close(ffn(x), expected)
