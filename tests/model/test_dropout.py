"""Our dropout: masks with the right values and share, keyed by window or from torch's generator alone, and the attention that
uses them."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ShapeError
from m3dt_agent.model.dropout import Dropout, GeneratorMasks, WindowGroup, dropout_mask, keyed_dropout
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


CPU = torch.device("cpu")


def keyed_masks(groups, shapes, rate=0.3, dtype=torch.float64):
    """What dropout multiplies tensors of these shapes by, one after the other, in one pass."""
    with keyed_dropout(groups, CPU):
        return [Dropout(rate)(torch.ones(shape, dtype=dtype)) for shape in shapes]


def generator_masks(groups, shapes, rate=0.3, dtype=torch.float64):
    """The same as a GPU draws them."""
    masks = GeneratorMasks(groups, CPU)
    return [masks.draw(shape, rate, dtype) for shape in shapes]


@pytest.mark.parametrize("draw", [keyed_masks, generator_masks])
@given(data=st.data())
def test_masks_of_some_windows_are_those_of_all_at_these_rows(draw, data):
    total = data.draw(st.integers(1, 9))
    first = data.draw(st.integers(0, total - 1))
    last = data.draw(st.integers(first + 1, total))
    tails = data.draw(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=4))
    seeds = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True))
    whole = draw([WindowGroup(seed, 0, total, total) for seed in seeds], [(len(seeds) * total, *tail) for tail in tails])
    part = draw(
        [WindowGroup(seed, first, last, total) for seed in seeds], [(len(seeds) * (last - first), *tail) for tail in tails]
    )
    alone = draw([WindowGroup(seeds[-1], 0, total, total)], [(total, *tail) for tail in tails])
    for of_all, of_some, of_last in zip(whole, part, alone, strict=True):
        groups = of_all.view(len(seeds), total, *of_all.shape[1:])
        assert torch.equal(of_some.view(len(seeds), last - first, *of_all.shape[1:]), groups[:, first:last])
        assert torch.equal(of_last, groups[-1])


@pytest.mark.parametrize("draw", [keyed_masks, generator_masks])
def test_keyed_masks_drop_their_share_and_windows_are_independent(draw):
    n = 40_000
    first, second = draw([WindowGroup(5, 0, 16, 16)], [(16, n), (16, n)], 0.1)
    for mask in (first, second):
        kept = (mask > 0).double()
        assert torch.allclose(mask[mask > 0], torch.tensor(1 / 0.9, dtype=torch.float64), rtol=1e-4)
        assert float((kept.mean(1) - 0.9).abs().max()) < 5 * math.sqrt(0.09 / n)
    rows = np.concatenate([(first > 0).numpy(), (second > 0).numpy()]).astype(float)  # 16 windows twice, all independent
    correlations = np.corrcoef(rows) - np.eye(32)
    assert np.abs(correlations).max() < 5.5 / math.sqrt(n)
    assert not torch.equal(draw([WindowGroup(6, 0, 16, 16)], [(16, n)], 0.1)[0], first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_drops_the_same_in_any_precision(dtype):
    groups, shapes = [WindowGroup(1, 2, 5, 8)], [(3, 11), (3, 2, 3)]
    for lower, full in zip(keyed_masks(groups, shapes, dtype=dtype), keyed_masks(groups, shapes), strict=True):
        assert torch.equal(lower > 0, full > 0)


def test_keyed_masks_leave_torchs_generator_alone_and_end_with_their_block():
    torch.manual_seed(5)
    expected = dropout_mask((4, 5), 0.3, torch.float32)
    torch.manual_seed(5)
    drop, ones = Dropout(0.3), torch.ones(4, 5)
    with keyed_dropout([WindowGroup(1, 0, 4, 4)], CPU):
        outer = drop(ones)
        with contextlib.suppress(ZeroDivisionError), keyed_dropout([WindowGroup(2, 0, 4, 4)], CPU):
            assert not torch.equal(drop(ones), outer)
            _ = 1 / 0
        after = drop(ones)  # the outer block goes on where it was
    assert torch.equal(drop(ones), expected)
    with keyed_dropout([WindowGroup(1, 0, 4, 4)], CPU):
        assert torch.equal(drop(ones), outer)
        assert torch.equal(drop(ones), after)


def test_a_batch_of_other_windows_than_were_keyed_is_refused():
    with keyed_dropout([WindowGroup(1, 0, 4, 9)], CPU), pytest.raises(ShapeError, match=r"keyed for 4 windows; got .*\(5, 2\)"):
        Dropout(0.3)(torch.ones(5, 2))


def test_attention_asks_for_masks_where_no_kernel_can_be_keyed():
    drop, gpu = Dropout(0.3), torch.device("cuda")
    assert drop.needs_mask(CPU)
    assert not drop.needs_mask(gpu)
    with keyed_dropout([WindowGroup(1, 0, 4, 4)], CPU):
        assert drop.needs_mask(gpu)
        assert not drop.eval().needs_mask(gpu)
