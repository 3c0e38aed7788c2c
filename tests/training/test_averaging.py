"""The running average of weights: against a slow oracle, in checkpoints, and in the bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training.test_loop import SHARED, MakeBank, backbone_run, trained

from m3dt_agent.config import BackboneConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.training import fit_stage
from m3dt_agent.training.averaging import WeightAverage


@given(decay=st.floats(0.01, 0.999), steps=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20))
def test_it_is_the_average_that_the_rule_gives(decay: float, steps: list[float]) -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = WeightAverage({"w": weight}, decay)
    slow = weight.detach().numpy().astype(np.float64)
    for t, value in enumerate(steps):
        weight.data.fill_(value)
        average.update(t)
        keep = min(decay, (1 + t) / (10 + t))
        slow = keep * slow + (1 - keep) * value
    np.testing.assert_allclose(average.tensors()["w"].numpy(), slow, rtol=1e-4, atol=1e-5)
    average.write_to_parameters()
    np.testing.assert_allclose(weight.detach().numpy(), slow, rtol=1e-4, atol=1e-5)


def test_training_goes_on_with_the_weights_and_the_bank_gets_the_average(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    plain, averaged = trained(backbone_run(data, bank)), trained(backbone_run(data, bank, ema=0.5))
    tensors = averaged.tensors()
    for name, weight in plain.tensors()["weights"].items():
        assert torch.equal(tensors["weights"][name], weight), name
    assert "average" not in plain.tensors()
    fit_stage("backbone", data, bank, BackboneConfig(**SHARED, ema=0.5), progress=False)  # type: ignore[arg-type]
    given = bank.read("backbone.safetensors")
    assert any(not torch.equal(given[name], tensors["weights"][name]) for name in given)
    for name, average in tensors["average"].items():
        assert torch.equal(given[name], average), name


@pytest.mark.parametrize("ema", [1.0, -0.1, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(ema: float) -> None:
    with pytest.raises(ConfigError, match="ema must be"):
        BackboneConfig(steps=1, ema=ema)
