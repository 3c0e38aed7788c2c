"""Prompts that are computed once are those that every window had."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig
from m3dt_agent.data.batches import Batch, Window
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.training import fit_stage, shares

MakeBank = Callable[..., ExpertBank]
WINDOWS = 80  # per group


def batch_with(ids: list[int]) -> Batch:
    """Windows whose prompts hold nothing but their id."""
    B = len(ids)
    steps = torch.zeros(B, 2, 1)
    prompt = Window(
        torch.tensor(ids).float()[:, None, None].expand(-1, 2, 1), steps, steps, steps[..., 0].long(), steps[..., 0] > -1
    )
    return Batch(torch.zeros(B, dtype=torch.int64), prompt, prompt, steps > -1, prompt_ids=torch.tensor(ids))


@given(st.integers(1, 3), st.data())
def test_each_window_has_its_prompt_in_its_own_group(K: int, draw: st.DataObject) -> None:
    distinct = draw.draw(st.lists(st.integers(1, WINDOWS), min_size=K, max_size=K))
    ids = [7 * i for of in distinct for i in draw.draw(st.permutations([b % of for b in range(WINDOWS)]))]
    most = max(distinct)
    found = shares.distinct_prompts(batch_with(ids), K)
    if most > WINDOWS / 2 or K * (WINDOWS - most) < 64:
        assert found is None
        return
    assert found is not None
    assert len(found.prompts.mask) == K * most
    assert found.prompts.states[found.of][:, 0, 0].tolist() == ids
    assert (found.of // most).tolist() == [b // WINDOWS for b in range(K * WINDOWS)]


def test_unknown_prompts_are_not_shared() -> None:
    assert shares.distinct_prompts(dataclasses.replace(batch_with([1] * 8), prompt_ids=None), 1) is None


@pytest.mark.parametrize("stage", ["backbone", "experts"])
def test_training_is_that_with_a_prompt_per_window(
    stage: str, data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {"steps": 6, "batch_size": 96, "tasks_per_batch": 3, "warmup_steps": 0, "precision": "float64"}
    config = BackboneConfig(**shared) if stage == "backbone" else ExpertsConfig(**shared, grouping="random")
    calls: list[int] = []
    real = shares.distinct_prompts

    def count(batch: Batch, n_groups: int) -> shares.Prompts | None:
        found = real(batch, n_groups)
        calls.append(0 if found is None else len(found.prompts.mask))
        return found

    weights = []
    for name, way in {"shared": count, "per window": lambda batch, n_groups: None}.items():
        monkeypatch.setattr("m3dt_agent.training.trainer.distinct_prompts", way)
        bank = make_bank(name, dropout=0.0)
        fit_stage(1, data, bank, BackboneConfig(**shared), progress=False)
        if stage == "experts":
            fit_stage(2, data, bank, config, progress=False)
        model = bank.model()
        weights.append(model.backbone_tensors() | (model.expert_tensors() if stage == "experts" else {}))
    assert calls
    assert 0 < min(calls) <= max(calls) <= 2 * 6
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-6, atol=1e-7)
