"""A step of training on a device that has no float64: nothing but float32 is sent there, and the numbers are the CPU's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pretend_gpu import GPU, pretended_gpu

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, RouterConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, InvalidValueError
from m3dt_agent.model.determinism import seeded
from m3dt_agent.training import backbone, trainer
from m3dt_agent.training.planning.settling import with_precision
from m3dt_agent.training.stage_inputs import StageInputs
from m3dt_agent.training.trainer import Trainer


@contextlib.contextmanager
def no_masks(*_: Any, **__: Any) -> Iterator[None]:
    """In place of `keyed_dropout`: a pretended GPU has no random generator."""
    yield


def backbone_steps(data: TaskDatasets, bank: ExpertBank, device: Any, steps: int = 3) -> Trainer:
    config = BackboneConfig(steps=10, warmup_steps=0, conflict_every=2, learning_rate=1e-3)
    one = Trainer(next(backbone.runs(StageInputs(data=data, bank=bank, config=config))), device)
    for _ in range(steps):
        one.step()
    return one


def test_a_gpu_without_float64_trains_as_the_cpu_does(
    data: TaskDatasets, make_bank: Callable[..., ExpertBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make_bank(dropout=0.0)
    monkeypatch.setattr(trainer, "keyed_dropout", no_masks)
    monkeypatch.setattr(trainer, "seeded", lambda seed, device: seeded(seed, torch.device("cpu")))
    expected = backbone_steps(data, bank, "cpu")
    with pretended_gpu():
        found = backbone_steps(data, bank, GPU)
        ours, theirs = found.report(), expected.report()
        assert (ours.losses, ours.grad_norms, ours.conflict) == (theirs.losses, theirs.grad_norms, theirs.conflict)
        for part, tensors in found.tensors().items():
            for name, tensor in tensors.items():
                assert tensor.device == GPU
                assert torch.equal(tensor.cpu(), expected.tensors()[part][name])


@pytest.mark.parametrize("device", ["mps", "mps:0", torch.device("mps")])
def test_float64_is_refused_where_there_is_none(device: Any, make_bank: Callable[..., ExpertBank]) -> None:
    with pytest.raises(ConfigError, match=r"precision 'float64' needs another device.*device='cpu'"):
        with_precision(RouterConfig(steps=1, precision="float64"), make_bank().config, device)


def test_a_weight_that_becomes_nan_in_the_last_step_is_not_kept(
    data: TaskDatasets, make_bank: Callable[..., ExpertBank]
) -> None:
    one = backbone_steps(data, make_bank(), "cpu", steps=1)
    one.require_finite()
    with torch.no_grad():
        one.parameters[-1][-1] = float("nan")
    with pytest.raises(
        InvalidValueError, match="backbone: the loss, its gradient or a weight became NaN or infinite by step 1; "
    ):
        one.require_finite()
