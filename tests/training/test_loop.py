"""The training loop: what a step depends on, and that stacked experts do not touch each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig, TrainConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.training import LogRecord, backbone, experts, fit_stage, router
from m3dt_agent.training.conflict import masked_losses
from m3dt_agent.training.job import Job
from m3dt_agent.training.loop import Run, Trainer, cpu_threads

MakeBank = Callable[..., ExpertBank]
SHARED = {"steps": 6, "batch_size": 4, "warmup_steps": 4, "learning_rate": 1e-2, "log_every": 2, "checkpoint_every": 3}


def trained(run: Run, steps: int = 6) -> Trainer:
    trainer = Trainer(run, "cpu")
    for _ in range(steps):
        trainer.step()
    return trainer


def backbone_run(data: TaskDatasets, bank: ExpertBank, **changes: object) -> Run:
    return next(backbone.runs(Job(data, bank, BackboneConfig(**SHARED | changes))))  # type: ignore[arg-type]


def bank_with_backbone(make_bank: MakeBank, data: TaskDatasets, **changes: object) -> ExpertBank:
    bank = make_bank(**changes)
    fit_stage("backbone", data, bank, BackboneConfig(**SHARED), progress=False)  # type: ignore[arg-type]
    return bank


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_the_same_steps_give_the_same_bits_whatever_the_caller_draws(
    data: TaskDatasets, make_bank: MakeBank, precision: str
) -> None:
    bank = make_bank()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = trained(backbone_run(data, bank, precision=precision))
    assert torch.equal(torch.rand(3), expected)  # the caller's generator was left alone
    second = trained(backbone_run(data, bank, precision=precision))
    for name, parameter in first.run.parameters.items():
        assert torch.equal(parameter, second.run.parameters[name]), name
        assert parameter.dtype == (torch.float64 if precision == "float64" else torch.float32)
    other = trained(backbone_run(data, bank, precision=precision, seed=1))
    assert not torch.equal(other.run.parameters["predict_action.weight"], first.run.parameters["predict_action.weight"])


def test_the_loss_is_the_mean_over_real_actions_of_real_steps(data: TaskDatasets, make_bank: MakeBank) -> None:
    run = backbone_run(data, make_bank(), batch_size=8)
    batch = run.samplers[0].sample(0)
    actions = torch.rand_like(batch.window.actions)
    for k, loss in enumerate(masked_losses(actions, batch, 2).tolist()):
        errors = []
        for b in range(4 * k, 4 * k + 4):
            width = data.tasks[int(batch.tasks[b])].act_dim
            for t in range(batch.window.mask.shape[1]):
                if batch.window.mask[b, t]:
                    errors += [float(actions[b, t, i] - batch.window.actions[b, t, i]) ** 2 for i in range(width)]
        assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_a_step_is_adamw_on_clipped_gradients_with_warm_up(data: TaskDatasets, make_bank: MakeBank) -> None:
    """Against torch's own clipping and an unfused AdamW."""
    bank = make_bank(dropout=0.0)
    config = {"precision": "float64", "grad_clip": 0.05, "weight_decay": 0.1}
    trainer, run = trained(backbone_run(data, bank, **config)), backbone_run(data, bank, **config)
    model = run.model.double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1, foreach=False)
    for step in range(6):
        batch = run.samplers[0].sample(step).to(dtype=torch.float64)
        optimizer.zero_grad()
        errors = (model(batch.window, batch.prompt) - batch.window.actions)[batch.action_mask]
        errors.square().mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05
        optimizer.param_groups[0]["lr"] = 1e-2 * min((step + 1) / 4, 1)
        optimizer.step()
    for name, parameter in run.parameters.items():
        torch.testing.assert_close(trainer.run.parameters[name], parameter, rtol=0, atol=1e-12)


def test_stacked_experts_train_as_each_alone(data: TaskDatasets, make_bank: MakeBank) -> None:
    """Dropout 0, float64: 1e-10 (issue 3). Gradients are clipped, by different factors."""
    bank = bank_with_backbone(make_bank, data, dropout=0.0)
    bank.commit({}, groups={task.name: i % 3 for i, task in enumerate(data.tasks)})
    config = ExpertsConfig(**SHARED | {"precision": "float64", "grad_clip": 5e-3, "steps": 25})  # type: ignore[arg-type]
    job = Job(data, bank, config)
    together = trained(experts.chunk_run(job, (0, 1, 2)), 25)
    assert (together.report().grad_norms[0]) > 5e-3
    for expert in range(3):
        alone = trained(experts.chunk_run(job, (expert,)), 25)
        for name, tensor in alone.run.model.expert_slice(0).items():
            torch.testing.assert_close(together.run.model.expert_slice(expert)[name], tensor, rtol=0, atol=1e-10)
            assert tensor.any(), name


@pytest.mark.parametrize(("stage", "make_config"), [("experts", ExpertsConfig), ("router", RouterConfig)])
def test_only_the_stages_own_part_is_trained(
    data: TaskDatasets, make_bank: MakeBank, stage: str, make_config: type[TrainConfig]
) -> None:
    bank = bank_with_backbone(make_bank, data)
    bank.commit({}, groups={task.name: i % 3 for i, task in enumerate(data.tasks)})
    fit_stage("experts", data, bank, ExpertsConfig(**SHARED), progress=False)  # type: ignore[arg-type]
    job = Job(data, bank, make_config(**SHARED))  # type: ignore[arg-type]
    run = experts.chunk_run(job, (0, 1, 2)) if stage == "experts" else next(router.runs(job))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    trained(run)
    for name, parameter in run.model.named_parameters():
        assert parameter.requires_grad == (name in run.parameters)
        assert torch.equal(parameter, before[name]) == (name not in run.parameters), name


def test_logs_are_records_and_losses_of_every_expert(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = bank_with_backbone(make_bank, data)
    records: list[LogRecord] = []
    config = ExpertsConfig(**SHARED, experts_at_once=2, grouping="random")  # type: ignore[arg-type]
    fit_stage("experts", data, bank, config, progress=False, on_log=records.append)
    assert [(record.experts, record.step) for record in records] == [(e, s) for e in ((0, 1), (2,)) for s in (2, 4, 6)]
    assert all(len(record.losses) == len(record.grad_norms) == len(record.experts) for record in records)
    assert records[0].loss == pytest.approx(sum(records[0].losses) / 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        records[0].step = 1  # type: ignore[misc]
    rows = (bank.path / "logs/experts.csv").read_text().splitlines()
    assert rows[0] == "step,expert,loss,lr,grad_norm,conflict,seconds"
    assert [row.split(",")[:2] for row in rows[1:]] == [[str(r.step), str(e)] for r in records for e in r.experts]
    assert [float(row.split(",")[2]) for row in rows[1:]] == [loss for record in records for loss in record.losses]


def test_threads_are_fixed_inside_and_given_back(data: TaskDatasets, make_bank: MakeBank) -> None:
    before, inside = torch.get_num_threads(), []
    bank = make_bank()
    config = BackboneConfig(**SHARED, threads=2)  # type: ignore[arg-type]
    fit_stage(1, data, bank, config, progress=False, on_log=lambda _: inside.append(torch.get_num_threads()))
    assert set(inside) == {2}
    assert torch.get_num_threads() == before
    assert bank.manifest.stages["backbone"]["threads"] == 2
    with pytest.raises(ZeroDivisionError), cpu_threads(2):
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_bfloat16_trains(data: TaskDatasets, make_bank: MakeBank) -> None:
    records: list[LogRecord] = []
    config = BackboneConfig(**SHARED | {"steps": 60, "log_every": 20}, precision="bfloat16")  # type: ignore[arg-type]
    fit_stage(1, data, make_bank(), config, progress=False, on_log=records.append)
    assert records[-1].loss < 0.9 * records[0].loss
