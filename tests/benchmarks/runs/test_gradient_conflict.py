"""Gradient conflict by module: against the definition written out, and at its extremes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.methods import Work, method
from benchmarks.runs.gradient_conflict import BATCHES, MODULES, conflict_by_module, module_of
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.training.conflict import masked_losses

MakeWork = Callable[..., Work]
WITHOUT_EXPERTS = {"attention", "ffn", "other", "all"}


def trained(make_work: MakeWork, name: str) -> tuple[M3DTAgent, Work]:
    work = make_work(name)
    work.folder.mkdir(exist_ok=True)
    agent = method(name).train(work, "1.00").policy
    assert isinstance(agent, M3DTAgent)
    return agent, work


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("prompt-dt", {"attention", "ffn", "other", "all"}),
        ("m3dt-random", {*MODULES, "all"}),
        ("mtdt", {"attention", "ffn", "other", "all"}),
    ],
)
def test_it_is_the_definition(make_work: MakeWork, name: str, modules: set[str]) -> None:
    agent, work = trained(make_work, name)
    config = dataclasses.replace(work.train_config("backbone"), seed=5)
    found = conflict_by_module(agent, work.data, config)
    assert set(found) == modules
    assert all(0.0 <= value <= 2.0 for value in found.values())
    sampler = BatchSampler(
        work.data,
        agent.statistics,
        agent.prompts,
        agent.config,
        batch_size=config.batch_size,
        tasks_per_batch=1,
        seed=5,
        stage="backbone",
    )
    for module in modules:
        values = []
        for step in range(BATCHES):
            rows = []
            for task in range(len(work.data.tasks)):
                batch = sampler.sample_task(task, step)
                agent.model.zero_grad()
                masked_losses(agent.model(batch.window, batch.prompt, agent.experts), batch, 1).sum().backward()
                chosen = [
                    (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
                    for n, p in agent.model.named_parameters()
                    if module in ("all", module_of(n))
                ]
                rows.append(torch.cat(chosen).double().numpy())
            mean = np.mean(rows, axis=0)
            cosines = [row @ mean / max(np.linalg.norm(row) * np.linalg.norm(mean), 1e-300) for row in rows]
            values.append(1.0 - np.mean(cosines))
        assert found[module] == pytest.approx(np.mean(values), abs=1e-4)


def test_one_task_agrees_with_itself(make_work: MakeWork) -> None:
    agent, work = trained(make_work, "prompt-dt")
    alone = work.data.subset([work.data.tasks[0].name])
    assert conflict_by_module(agent, alone, work.train_config("backbone"))["all"] == pytest.approx(0.0, abs=1e-5)


def test_every_parameter_has_a_module() -> None:
    names = (
        "blocks.0.attention.query.weight",
        "blocks.1.ffn.w_in.bias",
        "blocks.0.experts.w_in",
        "blocks.0.router.layers.0.weight",
    )
    assert [module_of(name) for name in names] == ["attention", "ffn", "experts", "router"]
    assert module_of("embed.state.weight") == "other"
