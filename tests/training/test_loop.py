"""The training loop: what a step depends on, and that stacked experts do not touch each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig, TrainConfig
from m3dt_agent.data.batches import Batch
from m3dt_agent.data.pack import PackedTask
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import InvalidValueError
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.training import LogRecord, backbone, experts, fit_stage, router
from m3dt_agent.training.checkpoint import newest_checkpoint, write_checkpoint
from m3dt_agent.training.conflict import masked_losses
from m3dt_agent.training.loop import train
from m3dt_agent.training.run import Run, StepHooks
from m3dt_agent.training.stage_inputs import StageInputs
from m3dt_agent.training.trainer import Trainer

MakeBank = Callable[..., ExpertBank]
SHARED = {"steps": 6, "batch_size": 4, "warmup_steps": 4, "learning_rate": 1e-2, "log_every": 2, "checkpoint_every": 3}


def trained(run: Run, steps: int = 6) -> Trainer:
    trainer = Trainer(run, "cpu")
    for _ in range(steps):
        trainer.step()
    return trainer


def backbone_run(data: TaskDatasets, bank: ExpertBank, **changes: object) -> Run:
    return next(backbone.runs(StageInputs(data=data, bank=bank, config=BackboneConfig(**SHARED | changes))))  # type: ignore[arg-type]


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


def test_labels_are_what_is_learned(data: TaskDatasets, make_bank: MakeBank) -> None:
    """To the last bit: the same labels as actions change nothing, others change the loss alone, `executed` ignores them."""

    def learned(sign: float | None, **changes: object) -> torch.Tensor:
        def with_labels(packed: PackedTask) -> PackedTask:
            labels = np.float32(sign) * packed.steps[:, packed.task.obs_dim : -1]
            steps = np.concatenate([packed.steps[:, :-1], labels, packed.steps[:, -1:]], axis=1)
            return dataclasses.replace(packed, stored=steps, labelled=True)

        packs = data.packed if sign is None else (*map(with_labels, data.packed[:2]), *data.packed[2:])
        run = backbone_run(dataclasses.replace(data, packed=packs), bank, **changes)
        return trained(run, 3).run.parameters["predict_action.weight"].detach()

    bank = make_bank()
    plain = learned(None)
    assert torch.equal(learned(1.0), plain)
    assert not torch.equal(learned(-1.0), plain)
    assert torch.equal(learned(-1.0, labels="executed"), plain)


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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_stacked_experts_train_as_each_alone(data: TaskDatasets, make_bank: MakeBank, dropout: float) -> None:
    """In float64, to 1e-10. Gradients are clipped, by different factors."""
    bank = bank_with_backbone(make_bank, data, dropout=dropout)
    bank.commit({}, groups={task.name: i % 3 for i, task in enumerate(data.tasks)})
    config = ExpertsConfig(**SHARED | {"precision": "float64", "grad_clip": 5e-3, "steps": 25})  # type: ignore[arg-type]
    inputs = StageInputs(data=data, bank=bank, config=config)
    together = trained(experts.chunk_run(inputs, (0, 1, 2)), 25)
    assert (together.report().grad_norms[0]) > 5e-3
    for expert in range(3):
        alone = trained(experts.chunk_run(inputs, (expert,)), 25)
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
    inputs = StageInputs(data=data, bank=bank, config=make_config(**SHARED))  # type: ignore[arg-type]
    run = experts.chunk_run(inputs, (0, 1, 2)) if stage == "experts" else next(router.runs(inputs))
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
    assert rows[0] == "step,expert,loss,lr,grad_norm,conflict,experts_kept,seconds"
    assert [row.split(",")[:2] for row in rows[1:]] == [[str(r.step), str(e)] for r in records for e in r.experts]
    assert [float(row.split(",")[2]) for row in rows[1:]] == [loss for record in records for loss in record.losses]


def test_a_checkpoint_from_before_experts_were_counted_is_continued(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    config = BackboneConfig(**SHARED | {"log_every": 4})  # type: ignore[arg-type]
    run = next(backbone.runs(StageInputs(data=data, bank=bank, config=config)))
    trainer = trained(run, 3)
    state = trainer.state(1)
    write_checkpoint(bank.path, dataclasses.replace(state, sums=state.sums[:2]), trainer.tensors())
    checkpoint, _ = newest_checkpoint(bank.path, run.name)
    assert checkpoint is not None
    continued = Trainer(next(backbone.runs(StageInputs(data=data, bank=bank, config=config))), "cpu")
    continued.restore(checkpoint)
    trainer.step()
    continued.step()
    ours, theirs = (dataclasses.replace(one.report(), seconds=0.0) for one in (continued, trainer))
    assert ours == theirs


class Counting(StepHooks):
    """Notes what it sees; counts steps in a tensor of its own, and adds the count to a weight."""

    def __init__(self, run: Run) -> None:
        self.run, self.seen, self.steps = run, [], torch.zeros((), dtype=torch.uint8)

    @property
    def bias(self) -> torch.Tensor:
        return self.run.parameters["predict_action.bias"]

    def before_forward(self, step: int, batch: Batch) -> None:
        assert torch.equal(batch.window.states, self.run.samplers[0].sample(step).window.states)
        self.seen.append(("forward", step, self.bias.grad is None, self.bias.detach().clone()))

    def before_update(self) -> None:
        norm = sum(float(p.grad.square().sum()) for p in self.run.parameters.values()) ** 0.5
        assert norm <= self.run.config.grad_clip * 1.001
        self.seen.append(("update", None, self.bias.grad is None, self.bias.detach().clone()))

    def after_update(self, step: int) -> None:
        self.seen.append(("after", step, self.bias.grad is None, self.bias.detach().clone()))
        self.steps += 1
        with torch.no_grad():
            self.bias.add_(float(self.steps))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"steps": self.steps}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.steps.copy_(tensors["steps"])


def with_hooks(run: Run) -> tuple[Run, Counting]:
    hooks = Counting(run)
    return dataclasses.replace(run, hooks=hooks), hooks


def test_hooks_come_before_the_forward_pass_and_around_the_update(data: TaskDatasets, make_bank: MakeBank) -> None:
    run, hooks = with_hooks(backbone_run(data, make_bank(), grad_clip=0.01))
    trained(run, 3)
    assert [(kind, step) for kind, step, _, _ in hooks.seen] == [
        (kind, None if kind == "update" else step) for step in range(3) for kind in ("forward", "update", "after")
    ]
    assert [no_gradient for _, _, no_gradient, _ in hooks.seen] == [True, False, True] * 3
    for forward, update, after in zip(hooks.seen[::3], hooks.seen[1::3], hooks.seen[2::3], strict=True):
        assert torch.equal(forward[3], update[3])
        assert not torch.equal(update[3], after[3])


def test_hooks_are_part_of_the_checkpoint(data: TaskDatasets, make_bank: MakeBank, tmp_path: Path) -> None:
    bank = make_bank()
    whole, _ = with_hooks(backbone_run(data, bank))
    train(whole, tmp_path / "whole", device="cpu", threads=1, progress=False)
    for steps in (3, 6):
        half, hooks = with_hooks(backbone_run(data, bank, steps=steps))
        train(half, tmp_path / "halves", device="cpu", threads=1, progress=False)
    assert [step for kind, step, _, _ in hooks.seen if kind == "forward"] == [3, 4, 5]
    assert int(hooks.steps) == 6
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, half.parameters[name]), name


def test_runs_without_hooks_have_the_checkpoints_they_had(data: TaskDatasets, make_bank: MakeBank, tmp_path: Path) -> None:
    train(backbone_run(data, make_bank()), tmp_path, device="cpu", threads=1, progress=False)
    files = {file.name for file in (tmp_path / "resume/backbone-6").iterdir()}
    assert files == {"weights.safetensors", "optimizer.safetensors", "state.json"}


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


def test_the_learning_rate_rises_and_falls_linearly(data: TaskDatasets, make_bank: MakeBank) -> None:
    trainer = Trainer(backbone_run(data, make_bank(), steps=8, warmup_steps=2, cooldown_steps=4), "cpu")
    rates = []
    for _ in range(8):
        trainer.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(2, 4), (7, 2)])
def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint_has_it(
    data: TaskDatasets, make_bank: MakeBank, log_every: int, checkpoint_every: int
) -> None:
    bank = make_bank()
    run = backbone_run(data, bank, steps=8, log_every=log_every, checkpoint_every=checkpoint_every)

    class Breaking(StepHooks):
        def before_forward(self, step: int, batch: Batch) -> None:
            if step == 4:
                batch.window.states.fill_(float("nan"))

    broken = dataclasses.replace(run, hooks=Breaking())
    with pytest.raises(InvalidValueError, match=r"backbone: the loss, .* became NaN or infinite by step \d; "):
        train(broken, bank.path, device="cpu", threads=1, progress=False)
    found, _ = newest_checkpoint(bank.path, "backbone")
    assert found is not None
    assert found.state.step == 4
    assert all(tensor.isfinite().all() for tensor in found.read("weights").values())
