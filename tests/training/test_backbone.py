"""Stage 1: the weights that it begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.training import backbone
from m3dt_agent.training.stage_inputs import StageInputs


def first_weights(data: TaskDatasets, bank: ExpertBank, **changes: Any) -> dict[str, torch.Tensor]:
    config = BackboneConfig(steps=1, batch_size=4, warmup_steps=0, **changes)
    run = next(backbone.runs(StageInputs(data=data, bank=bank, config=config)))
    return {name: parameter.detach() for name, parameter in run.parameters.items()}


@pytest.mark.parametrize(
    ("setting", "scaled"),
    [
        ("embedding_std", lambda name: name.startswith("embed") and name.endswith(("state.weight", "action.weight"))),
        ("block_std", lambda name: name.startswith("blocks.") and "ln_" not in name and name.endswith(".weight")),
    ],
    ids=["embeddings", "blocks"],
)
def test_first_weights_have_the_deviation_that_is_asked_for(
    data: TaskDatasets, make_bank: Callable[..., ExpertBank], setting: str, scaled: Callable[[str], bool]
) -> None:
    bank = make_bank()
    published, ours = first_weights(data, bank), first_weights(data, bank, **{setting: 0.1})
    assert any(map(scaled, ours))
    for name, weight in ours.items():
        assert torch.equal(weight, published[name] * 5 if scaled(name) else published[name]), name
        if scaled(name):
            assert float(weight.std()) == pytest.approx(0.1, rel=0.2)
