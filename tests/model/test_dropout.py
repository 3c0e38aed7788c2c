"""Our dropout: masks with the right values and share, from torch's generator alone, and the attention that uses them."""

import math

import numpy as np
import pytest
import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.model.dropout import Dropout, dropout_mask
from m3dt_agent.model.transformer import ALL_TOKENS, Attention


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    mask = dropout_mask((400, 1001), rate, torch.float64)
    kept = mask > 0
    n = mask.numel()
    assert torch.equal(mask[kept], torch.full((int(kept.sum()),), 65536 / (65536 - round(rate * 65536)), dtype=torch.float64))
    assert abs(float(kept.double().mean()) - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert abs(float(mask.mean()) - 1) < 5 * math.sqrt(rate / (1 - rate) / n)
    columns = kept.double().mean(0)  # no column is special: 16-bit numbers are cut out of 64-bit words
    assert float((columns - (1 - rate)).abs().max()) < 6 * math.sqrt(rate * (1 - rate) / len(mask))


def test_neighbours_in_a_mask_are_independent():
    torch.manual_seed(1)
    dropped = (dropout_mask((200_000,), 0.5, torch.float32) == 0).numpy().astype(float)
    for lag in (1, 2, 3, 4, 5, 64):
        assert abs(np.corrcoef(dropped[:-lag], dropped[lag:])[0, 1]) < 5 / math.sqrt(len(dropped)), lag


def test_masks_follow_from_torchs_generator_and_move_it():
    torch.manual_seed(2)
    first, second = dropout_mask((50, 7), 0.3, torch.float32), dropout_mask((50, 7), 0.3, torch.float32)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(dropout_mask((50, 7), 0.3, torch.float32), first)
    assert torch.equal(dropout_mask((50, 7), 0.3, torch.float32), second)


def test_nothing_is_dropped_outside_training_or_at_rate_0():
    x = torch.randn(5, 6)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_multiplies_values_and_gradients_by_one_mask(dtype):
    x = torch.randn(30, 40, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.25)(x)
    torch.manual_seed(3)
    mask = dropout_mask(x.shape, 0.25, dtype)
    assert torch.equal(y, x * mask)
    y.sum().backward()
    assert torch.equal(x.grad, mask)


def test_attention_in_training_is_the_written_out_formula():
    config = ModelConfig.preset("tiny", dropout=0.4)
    attention = Attention(config).double()
    h = torch.randn(3, 7, config.embed_dim, dtype=torch.float64)
    mask = torch.ones(3, 1, 7, 7, dtype=torch.bool).tril()
    mask[0, :, :, 2] = False
    mask[0, :, 2, 2] = True
    torch.manual_seed(4)
    ours = attention(h, mask, ALL_TOKENS, None)
    heads = [
        t.view(3, 7, config.n_heads, -1).transpose(1, 2) for t in (attention.query(h), *attention.key_value(h).chunk(2, -1))
    ]
    q, k, v = heads
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf).softmax(-1)
    torch.manual_seed(4)
    mixed = (scores * dropout_mask(scores.shape, 0.4, torch.float64)) @ v
    torch.testing.assert_close(ours, attention.out(mixed.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)
    plain = attention.eval()(h, mask, ALL_TOKENS, None)
    torch.testing.assert_close(plain, attention.out((scores @ v).transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)
