"""The sample router weighs by the mean of the tokens so far."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_runs import MakeWork, batch_of, part, sample_model, train, weights
from torch import Tensor

from m3dt_agent.evaluation import router_usage


def test_the_sample_router_weighs_by_the_mean_of_the_real_tokens_so_far(make_work: MakeWork) -> None:
    work = make_work("m3dt-random")
    model, batch = sample_model(work.model_config()), batch_of(work, work.model_config())
    window = dataclasses.replace(batch.window, mask=batch.window.mask & (torch.arange(4) >= 1))
    h: list[Tensor] = []  # of prompt and window, block after block
    hooks = [block.ln_2.register_forward_hook(lambda _m, _i, output: h.append(output)) for block in model.blocks]
    found = model.router_weights(window, batch.prompt)  # (B, T, L, E)
    for hook in hooks:
        hook.remove()
    assert len(h) == 4
    for layer, block in enumerate(model.blocks):
        tokens = torch.cat((h[layer], h[2 + layer]), dim=1)  # (B, 3P + 3T - 1, D)
        real = torch.cat((batch.prompt.mask, window.mask), dim=1).repeat_interleave(3, dim=1)
        for b, step in ((0, 3), (2, 1), (5, 2)):
            end = 3 * (2 + step) + 2  # after the state token of the window's step
            mean = torch.stack([tokens[b, j] for j in range(end) if real[b, j]]).mean(0)
            torch.testing.assert_close(found[b, step, layer], block.router(mean))


def test_the_sample_router_is_trained_from_m3dts_first_weights(make_work: MakeWork) -> None:
    usual = weights(train(make_work("m3dt-gradient", folder="usual")))
    outcome = train(make_work("m3dt-sample-router", folder="sample"))
    sample = weights(outcome)
    changed = {name for name in usual if not torch.equal(usual[name], sample[name])}
    assert changed == set(part(usual, "router"))
    usage = router_usage(outcome.policy, make_work("m3dt-gradient").data)  # type: ignore[arg-type]
    assert all(sum(found) == pytest.approx(1.0) for found in usage.values())
