"""Counted FLOP are those of the matrix products."""

from __future__ import annotations

from method_runs import MakeWork

from benchmarks.methods import base, costs
from m3dt_agent.model import M3DT


def test_flop_are_those_of_the_matrix_products(make_work: MakeWork) -> None:
    work = make_work("prompt-dt")
    config = work.model_config(n_experts=0)
    model, sampler = M3DT(config).eval(), base.run_sampler(work, config, work.train_config("backbone"))
    D, window, prompt = config.embed_dim, 3 * 4 - 1, 3 * 2

    def block(queries: int) -> int:  # products of one block for so many of a window's tokens
        attention = queries * D * D + window * D * 2 * D + 2 * queries * (prompt + window) * D + queries * D * D
        return attention + 2 * queries * D * 4 * D

    embedding = 4 * (1 + config.state_dim + config.act_dim) * D
    expected = 2 * (embedding + block(window) + block(1) + D * config.act_dim)
    assert costs.action_flop(model, sampler, "none") == expected
    everything = costs.step_flop(model, sampler, dict(model.named_parameters()), "none")
    head = costs.step_flop(model, sampler, dict(model.predict_action.named_parameters()), "none")
    forward = head - 2 * 6 * 4 * D * config.act_dim  # the head's own gradient
    assert 2.8 * forward < everything < 3 * forward
    assert all(p.grad is None for p in model.parameters())
