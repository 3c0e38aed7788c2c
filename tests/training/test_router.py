"""Stage 3's options: skipping hardly used experts, and asking the router to use few."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError
from m3dt_agent.model import Routing
from m3dt_agent.training import LogRecord, fit_stage, router
from m3dt_agent.training.run import Run
from m3dt_agent.training.stage_inputs import StageInputs
from m3dt_agent.training.trainer import Trainer

MakeBank = Callable[..., ExpertBank]
SHARED = {"batch_size": 8, "warmup_steps": 0, "learning_rate": 3e-3, "log_every": 10}


@pytest.fixture
def bank(data: TaskDatasets, make_bank: MakeBank) -> ExpertBank:
    """Three experts, and no router yet."""
    made = make_bank(dropout=0.0)
    fit_stage("backbone", data, made, BackboneConfig(steps=20, **SHARED), progress=False)  # type: ignore[arg-type]
    fit_stage("experts", data, made, ExpertsConfig(steps=30, **SHARED), progress=False)  # type: ignore[arg-type]
    return made


def router_run(data: TaskDatasets, bank: ExpertBank, **changes: object) -> Run:
    return next(router.runs(StageInputs(data=data, bank=bank, config=RouterConfig(**SHARED | {"steps": 60} | changes))))  # type: ignore[arg-type]


def entropy(run: Run, data: TaskDatasets) -> float:
    """Mean over windows and blocks of the entropy of a window's mean router weights."""
    batch = run.samplers[0].sample(10_000)
    found = []
    hooks = [
        block.get_submodule("router").register_forward_hook(
            lambda _m, _i, w: found.append(torch.special.entr(w.mean(1)).sum(-1))
        )
        for block in run.model.blocks
    ]
    with torch.no_grad():
        run.model.eval()(batch.window, batch.prompt, "mixture")
    for hook in hooks:
        hook.remove()
    return float(torch.stack(found).mean())


def trained(run: Run, steps: int) -> Run:
    trainer = Trainer(run, "cpu")
    for _ in range(steps):
        trainer.step()
    return run


def test_a_concentrated_router_uses_fewer_experts(data: TaskDatasets, bank: ExpertBank) -> None:
    plain, concentrated = (entropy(trained(router_run(data, bank, concentrate=c), 60), data) for c in (0.0, 0.5))
    assert concentrated < 0.8 * plain


def test_concentration_begins_when_it_should(data: TaskDatasets, bank: ExpertBank) -> None:
    def weights(steps: int, **changes: object) -> list[torch.Tensor]:
        return [p.detach().clone() for p in trained(router_run(data, bank, **changes), steps).parameters.values()]

    plain, late = weights(30), weights(30, concentrate=0.5, concentrate_after=0.5)
    assert all(torch.equal(a, b) for a, b in zip(plain, late, strict=True))
    further = weights(31), weights(31, concentrate=0.5, concentrate_after=0.5)
    assert not all(torch.equal(a, b) for a, b in zip(*further, strict=True))


def test_skipping_is_logged_and_changes_nothing_where_nothing_is_skipped(
    data: TaskDatasets, bank: ExpertBank, tmp_path: Path
) -> None:
    hashes, kept = {}, {}
    for skip_below in (0.0, 1e-9, 0.5):
        own = bank.copy_to(tmp_path / str(skip_below))
        records: list[LogRecord] = []
        config = RouterConfig(steps=30, skip_below=skip_below, **SHARED)  # type: ignore[arg-type]
        fit_stage("router", data, own, config, progress=False, on_log=records.append)
        hashes[skip_below] = own.read("router.safetensors")
        kept[skip_below] = [record.experts_kept for record in records]
        with (own.path / "logs/router.csv").open() as file:
            logged = [row["experts_kept"] for row in csv.DictReader(file)]
        assert logged == ["" if share is None else repr(share) for share in kept[skip_below]]
    assert kept[0.0] == [None] * 3
    assert kept[1e-9] == [1.0] * 3
    assert all(share is not None and 0.333 < share < 0.7 for share in kept[0.5])  # at most one expert has half of the weight
    for name, tensor in hashes[0.0].items():
        torch.testing.assert_close(hashes[1e-9][name], tensor, rtol=0, atol=1e-5)
    assert any(not torch.equal(hashes[0.5][name], tensor) for name, tensor in hashes[0.0].items())


@pytest.mark.parametrize(("skip_below", "warned"), [(0.3, False), (0.34, True)])
def test_a_warning_where_experts_would_be_skipped_from_the_first_step_on(
    data: TaskDatasets, bank: ExpertBank, caplog: pytest.LogCaptureFixture, skip_below: float, warned: bool
) -> None:
    router_run(data, bank, skip_below=skip_below)
    assert ("each of 3 experts has about 0.333 of a router's weight at first" in caplog.text) == warned


@pytest.mark.parametrize(("concentrate", "experts"), [(0.0, "mixture"), (0.01, Routing(mass=0.99))])
def test_a_concentrated_router_acts_with_few_experts_by_default(
    data: TaskDatasets, bank: ExpertBank, concentrate: float, experts: object
) -> None:
    fit_stage("router", data, bank, RouterConfig(steps=4, concentrate=concentrate, **SHARED), progress=False)  # type: ignore[arg-type]
    assert M3DTAgent.load(bank.path).experts == experts
    assert bank.default_experts == "mixture"


def test_a_router_starts_from_anothers_weights(data: TaskDatasets, bank: ExpertBank, tmp_path: Path) -> None:
    config = RouterConfig(steps=4, **SHARED)  # type: ignore[arg-type]
    fit_stage("router", data, bank, config, progress=False)
    other = bank.for_tasks(tmp_path / "other", data.tasks)
    still = dataclasses.replace(config, steps=1, learning_rate=1e-12, weight_decay=0.0)
    fit_stage("router", data, other, still, start=bank, progress=False)
    before, after = bank.read("router.safetensors"), other.read("router.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    new = bank.for_tasks(tmp_path / "new", data.tasks)
    fit_stage("router", data, new, still, progress=False)
    assert any(not torch.allclose(tensor, before[name]) for name, tensor in new.read("router.safetensors").items())


def test_a_run_from_anothers_weights_continues_on_those_alone(data: TaskDatasets, bank: ExpertBank, tmp_path: Path) -> None:
    config = RouterConfig(steps=4, checkpoint_every=2, **SHARED)  # type: ignore[arg-type]
    fit_stage("router", data, bank, config, progress=False)
    other = bank.for_tasks(tmp_path / "other", data.tasks)
    fit_stage("router", data, other, config, start=bank, progress=False)
    with pytest.raises(BankError, match="router at the start was"):
        fit_stage("router", data, other, dataclasses.replace(config, steps=6), progress=False)
    with pytest.raises(ConfigError, match="start= goes with stage 'router'"):
        fit_stage("backbone", data, other, start=bank, progress=False)


def test_concentration_has_a_finite_slope_where_an_expert_is_never_used(data: TaskDatasets, bank: ExpertBank) -> None:
    run = router_run(data, bank, concentrate=0.1, concentrate_after=0.0)
    with torch.no_grad():
        for name, parameter in run.model.router_tensors().items():
            if name.endswith("bias") and parameter.shape == (3,):
                parameter.copy_(torch.tensor([300.0, 0.0, 0.0]))  # softmax gives the other two exactly nothing
    trainer = Trainer(run, "cpu")
    for _ in range(3):
        trainer.step()
    assert torch.isfinite(torch.tensor(trainer.report().loss))
    assert all(torch.isfinite(parameter).all() for parameter in run.model.router_tensors().values())


def test_a_guided_router_finds_the_experts_of_its_tasks(data: TaskDatasets, bank: ExpertBank) -> None:
    groups = bank.groups or {}

    def weight_of_own(guide: float) -> float:
        run = trained(router_run(data, bank, guide=guide, steps=300), 200)
        run.model.eval()
        found = []
        for i, task in enumerate(data.tasks):
            batch = router_run(data, bank).samplers[0].sample_task(i, 0)  # type: ignore[attr-defined]
            with torch.no_grad():
                weights = run.model.router_weights(batch.window, batch.prompt)[batch.window.mask]
            found.append(float(weights[..., groups[task.name]].mean()))
        return sum(found) / len(found)

    assert weight_of_own(1.0) > weight_of_own(0.0) + 0.05  # 1/3 is what a router that knows nothing gives


def test_guidance_is_the_cross_entropy_with_the_own_groups_and_needs_groups(data: TaskDatasets, bank: ExpertBank) -> None:
    groups = bank.groups or {}
    batch = router_run(data, bank).samplers[0].sample(0)
    run = router_run(data, bank, guide=0.5, steps=10)
    weights: list[torch.Tensor] = []
    for block in run.model.blocks:
        block.get_submodule("router").register_forward_hook(lambda _module, _inputs, found: weights.append(found))
    run.hooks.before_forward(9, batch)
    run.model(batch.window, batch.prompt, "mixture")
    cross_entropy = [
        -found[window, token, groups[data.tasks[int(task)].name]].log()
        for found in weights
        for window, task in enumerate(batch.tasks)
        for token in range(found.shape[1])
    ]
    expected = 0.5 * torch.stack(cross_entropy).mean()
    torch.testing.assert_close(torch.as_tensor(run.hooks.extra_loss()), expected)


def test_without_groups_a_router_is_not_guided_and_that_is_said(
    data: TaskDatasets, bank: ExpertBank, caplog: pytest.LogCaptureFixture
) -> None:
    bank.commit({}, groups=None)
    guided, plain = (trained(router_run(data, bank, guide=guide), 3) for guide in (0.5, 0.0))
    for name, weight in guided.parameters.items():
        assert torch.equal(weight, plain.parameters[name]), name
    assert "does not say which expert learned which task" in caplog.text
