"""Fast paths against the plain implementation: the same weights after 50 steps, in every stage.

The plain side is `benchmarks.perf.baseline` and a loop written out here: modules in a list, a softmax of a matrix, the loss as
a mean, AdamW of one tensor after the other. Everything in float64, without dropout (masks would differ) and without warm-up,
with which weights would hardly move. What is compared is how far the weights went.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from benchmarks.perf.baseline import BaselineM3DT
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig
from m3dt_agent.data.batches import Batch
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.training import backbone, experts, fit_stage, router
from m3dt_agent.training.run import Run
from m3dt_agent.training.shares import Sampler
from m3dt_agent.training.stage_inputs import StageInputs
from m3dt_agent.training.trainer import Trainer

MakeBank = Callable[..., ExpertBank]
STEPS, RATE, DECAY, CLIP = 50, 1e-3, 1e-2, 0.25
SHARED = {
    "steps": STEPS,
    "batch_size": 6,
    "warmup_steps": 0,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "precision": "float64",
}


def plain_tensors(model: BaselineM3DT) -> dict[str, Tensor]:
    """The baseline's tensors under our names and in our shapes."""
    found: dict[str, Tensor] = {}
    for name in ("embed", "embed_norm", "embed_prompt", "final_norm", "predict_action"):
        found |= {f"{name}.{key}": value for key, value in getattr(model, name).state_dict().items()}
    for i, block in enumerate(model.blocks):
        at = f"blocks.{i}."
        D = block.out.weight.shape[0]
        for field in ("weight", "bias"):
            fused = getattr(block.qkv, field)
            found |= {f"{at}attention.query.{field}": fused[:D], f"{at}attention.key_value.{field}": fused[D:]}
            found |= {f"{at}attention.out.{field}": getattr(block.out, field)}
            found |= {f"{at}{norm}.{field}": getattr(getattr(block, norm), field) for norm in ("ln_1", "ln_2")}
            found |= {f"{at}ffn.w_in.{field}": getattr(block.ffn.first, field)}
            found |= {f"{at}ffn.w_out.{field}": getattr(block.ffn.second, field)}
        if len(block.experts):
            found[f"{at}experts.w_in"] = torch.stack([expert.first.weight.T for expert in block.experts])
            found[f"{at}experts.b_in"] = torch.stack([expert.first.bias for expert in block.experts])
            found[f"{at}experts.w_out"] = torch.stack([expert.second.weight.T for expert in block.experts])
            found[f"{at}experts.b_out"] = torch.stack([expert.second.bias for expert in block.experts])
            for k, layer in enumerate(block.router[::2]):
                found |= {f"{at}router.layers.{k}.{key}": value for key, value in layer.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def train_plainly(model: BaselineM3DT, parameters: list[nn.Parameter], sampler: Sampler, choice: str | int) -> None:
    """All steps of `parameters`, the only ones with gradients."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, foreach=False, fused=False)
    for step in range(STEPS):
        batch: Batch = sampler.sample(step).to(dtype=torch.float64)
        actions = model(batch.window, batch.prompt, choice)
        loss = (actions - batch.window.actions)[batch.action_mask].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()


def assert_went_the_same_way(run: Run, start: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> None:
    """The norm of the difference is a millionth of how far the plain weights went."""
    ours = torch.cat([(p.detach() - start[name]).flatten() for name, p in run.parameters.items()])
    theirs = torch.cat([(plain[name] - start[name]).flatten() for name in run.parameters])
    assert theirs.norm() > 0.05
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def trained(run: Run) -> dict[str, Tensor]:
    """Trains the run to its end; the weights that it began with."""
    trainer = Trainer(run, "cpu")
    start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    while not trainer.is_over:
        trainer.step()
    return start


def test_the_backbone_stage(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank(dropout=0.0)
    run = next(backbone.runs(StageInputs(data=data, bank=bank, config=BackboneConfig(**SHARED))))  # type: ignore[arg-type]
    plain = BaselineM3DT(run.model).double()
    start = trained(run)
    train_plainly(plain, list(plain.parameters()), run.samplers[0], "none")
    assert_went_the_same_way(run, start, plain_tensors(plain))


def test_the_experts_stage(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank(dropout=0.0)
    fit_stage("backbone", data, bank, BackboneConfig(**SHARED), progress=False)  # type: ignore[arg-type]
    inputs = StageInputs(data=data, bank=bank, config=ExpertsConfig(**SHARED, grouping="random", experts_at_once=3))  # type: ignore[arg-type]
    bank.commit({}, groups={task.name: i % 3 for i, task in enumerate(data.tasks)}, grouping={"grouping": "random", "seed": 0})
    run = next(experts.runs(inputs))
    plain = BaselineM3DT(run.model).double()
    start = trained(run)
    for e, sampler in enumerate(run.samplers):
        train_plainly(plain, [p for block in plain.blocks for p in block.experts[e].parameters()], sampler, e)
    assert_went_the_same_way(run, start, plain_tensors(plain))


@pytest.mark.parametrize("skip_below", [0.0, 1e-12])  # the second goes the way of skipping, and skips nothing
def test_the_router_stage(data: TaskDatasets, make_bank: MakeBank, skip_below: float) -> None:
    bank = make_bank(dropout=0.0)
    for stage, config in (
        ("backbone", BackboneConfig(**SHARED)),  # type: ignore[arg-type]
        ("experts", ExpertsConfig(**SHARED | {"learning_rate": 1e-2}, grouping="random")),  # type: ignore[arg-type]
    ):
        fit_stage(stage, data, bank, dataclasses.replace(config, precision="float32"), progress=False)
    run = next(router.runs(StageInputs(data=data, bank=bank, config=RouterConfig(**SHARED, skip_below=skip_below))))  # type: ignore[arg-type]
    plain = BaselineM3DT(run.model).double()
    start = trained(run)
    train_plainly(plain, [p for block in plain.blocks for p in block.router.parameters()], run.samplers[0], "mixture")
    assert_went_the_same_way(run, start, plain_tensors(plain))
