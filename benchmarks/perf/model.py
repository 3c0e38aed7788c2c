"""Measures training steps of each stage, ours against `baseline.py`, both in float32 and bfloat16, in turns in one process.

    python -m benchmarks.perf.model [--json [FILE]] [--quick] [--stage backbone experts router] [--experts 8 48] [--device cuda]

A step is one of the training loop's own (`training.trainer.Trainer`: batch to device, forward, backward, clipping, AdamW) on a
synthetic batch at the paper preset (16 windows of 20 steps and prompts of 5 = 75 tokens, D 256, 6 layers). The baseline does
the same with plain modules: a loop over experts, softmax attention, torch's dropout, frozen parts without gradients, and
autocast for bfloat16. In stage 2, a step trains every expert on 16 windows of its own: ours in stacks of experts as training
makes them on this device, the baseline one expert after another. A row has the median time, the ratio of the float32
baseline's time to it, the GFLOP/s of its matrix products with the ceiling (the fastest of three products, measured right
before), and peak memory, which is how much the process grew during a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig, Stage, TrainConfig
from m3dt_agent.data.batches import Batch, Window
from m3dt_agent.model import M3DT, ExpertChoice
from m3dt_agent.training.planning.settling import with_stacking
from m3dt_agent.training.run import Run as TrainingRun
from m3dt_agent.training.trainer import Trainer

from .baseline import BaselineM3DT
from .frame import Run, add_options, begin
from .setting import PRECISIONS, Row, Setting, compare, report, setting

_CONFIGS: dict[Stage, type[TrainConfig]] = {"backbone": BackboneConfig, "experts": ExpertsConfig, "router": RouterConfig}


@dataclass(frozen=True)
class _SameBatch:
    batch: Batch

    def sample(self, step: int) -> Batch:
        return self.batch


def our_step(
    at: Setting,
    stage: Stage,
    precision: str,
    model: M3DT,
    choice: ExpertChoice,
    experts: tuple[int, ...] = (),
    prompt_ids: torch.Tensor | None = None,
) -> Run:
    """A step of the training loop that trains all parameters of `stage` in `model`. prompt_ids: as a `Batch` has them."""
    parameters = {
        "backbone": model.backbone_tensors,
        "experts": model.expert_tensors,
        "router": model.router_tensors,
    }[stage]()
    window, prompt = at.batch(at.windows)
    action_mask = torch.ones_like(window.actions, dtype=torch.bool)
    tasks = torch.zeros(at.windows, dtype=torch.int64)
    sampler = _SameBatch(Batch(tasks, window, prompt, action_mask, prompt_ids=prompt_ids))
    run = TrainingRun(
        name="perf",
        config=_CONFIGS[stage](steps=1, batch_size=at.windows, precision=precision),  # type: ignore[arg-type]
        model=model,
        parameters=parameters,
        samplers=[sampler] * max(len(experts), 1),
        choice=choice,
        built_on={},
        public_files=dict,
        experts=experts,
    )
    return Trainer(run, at.device).step


def our_expert_steps(at: Setting, precision: str, n_experts: int) -> Run:
    """A step of every expert, in stacks as training makes them on this device."""
    config = at.model(n_experts).config
    size = with_stacking(ExpertsConfig(steps=1, batch_size=at.windows), config, at.device).experts_at_once or n_experts
    sizes = [min(size, n_experts - first) for first in range(0, n_experts, size)]
    steps = [our_step(at, "experts", precision, at.model(k), tuple(range(k)), tuple(range(k))) for k in sizes]

    def step() -> None:
        for one in steps:
            one()

    return step


def baseline_step(at: Setting, precision: str, model: BaselineM3DT, parameters: list[nn.Parameter], choice: str | int) -> Run:
    """A step of the baseline that trains `parameters` and nothing else."""
    batch: tuple[Window, Window] = at.batch(at.windows)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> None:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with at.autocast(precision):
            actions = model(*batch, choice)
        nn.functional.mse_loss(actions.float(), batch[0].actions).backward()
        nn.utils.clip_grad_norm_(parameters, 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def baseline_steps(at: Setting, stage: Stage, precision: str, model: BaselineM3DT, n_experts: int) -> Run:
    """The baseline's step of `stage`; in stage 2, a step of every expert, one after another."""
    if stage == "backbone":
        return baseline_step(at, precision, model, list(model.parameters()), "none")
    if stage == "router":
        return baseline_step(at, precision, model, [p for b in model.blocks for p in b.router.parameters()], "mixture")
    own = [[p for block in model.blocks for p in block.experts[e].parameters()] for e in range(n_experts)]
    steps = [baseline_step(at, precision, model, parameters, e) for e, parameters in enumerate(own)]

    def step() -> None:
        for one in steps:
            one()

    return step


def stage_rows(at: Setting, stage: Stage, n_experts: int) -> list[Row]:
    """Measures a stage's step, ours and the baseline's, in both precisions."""
    baseline = at.baseline(at.model(n_experts))
    ways = {f"baseline {p}": (p, baseline_steps(at, stage, p, baseline, n_experts)) for p in PRECISIONS}
    for precision in PRECISIONS:
        if stage == "experts":
            step = our_expert_steps(at, precision, n_experts)
        else:
            step = our_step(at, stage, precision, at.model(n_experts), "mixture" if stage == "router" else "none")
        ways[f"ours {precision}"] = (precision, step)
    return compare(at, f"{stage} step, E={n_experts}", ways)


def rows(at: Setting, stages: list[Stage], expert_counts: list[int]) -> Iterator[Row]:
    """Measures everything that the command line asks for."""
    if "backbone" in stages:
        yield from stage_rows(at, "backbone", 0)
    for n_experts in expert_counts:
        for stage in stages:
            if stage != "backbone":
                yield from stage_rows(at, stage, n_experts)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--stage", nargs="+", choices=list(_CONFIGS), default=list(_CONFIGS))
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 48])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    record = begin("model", device=args.device, quick=args.quick)
    report(record, rows(setting(args.quick, args.device), args.stage, args.experts), args.json)


if __name__ == "__main__":
    main()
