"""Prompt caches: chosen and overwritten prompt by prompt."""

import dataclasses

import pytest
import torch
from model.test_prompt_dt import P, T, make_model, make_window, rows

from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ShapeError
from m3dt_agent.model import PromptCache


def test_cache_select_and_update():
    model, window, prompt, other = make_model(), make_window(0, T), make_window(1, P), make_window(2, P)
    cache = model.encode_prompt(prompt)
    order = [3, 3, 0, 5, 1, 2]
    expected = model.act(window, model.encode_prompt(rows(prompt, order)))
    torch.testing.assert_close(model.act(window, cache.select(order)), expected, rtol=0, atol=1e-6)
    mask = torch.tensor([True, False, False, True, False, False])
    mixed = Window(
        *(
            torch.where(
                mask.view(-1, *[1] * (getattr(prompt, f.name).ndim - 1)), getattr(other, f.name), getattr(prompt, f.name)
            )
            for f in dataclasses.fields(prompt)
        )
    )
    updated = model.encode_prompt(prompt).update(mask, model.encode_prompt(rows(other, mask)))
    assert isinstance(updated, PromptCache)
    torch.testing.assert_close(model.act(window, updated), model(window, mixed)[:, -1], rtol=0, atol=1e-6)
    by_index = model.encode_prompt(prompt).update([0, 3], model.encode_prompt(rows(other, [0, 3])))
    assert torch.equal(by_index.keys, updated.keys)
    with pytest.raises(ShapeError, match="needs 2 prompts of 3 steps"):
        cache.update([0, 1], model.encode_prompt(other))
