"""The published settings, and the six scales at which an experiment can run.

    scale    steps    windows per step   widths                                        time
    paper    all      16                 as published                                  months on one GPU
    small    1/20     64                 halved                                        hours on one GPU
    laptop   1/200    32                 a quarter, two seeds                          an hour or two on two cores
    box      1/10     64                 halved, three layers                          hours on two cores
    wheel    1/50     256                halved, three layers, windows of one step     an hour or two on two cores
    smoke    1/1000   32                 tiny, at most 13 tasks, the first seed only   minutes on two cores

`wheel` is the scale of the bank that the package ships, `box` that of its first one. Settings are written once, in the paper's
numbers. A scale maps the steps, the widths, the number of experts and the sizes of task sets, and replaces a few other numbers.
So scales differ only in sizes and steps, with two exceptions. At scales laptop, box and wheel a batch mixes tasks: the
published batch holds one task, and with so few steps each task would be drawn only about fifty times. Scale wheel also adds
what little training needs (`_IMITATION`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m3dt_agent.config import EVALUATION_SEED

UNTRAINED = ("random", "zero", "behavior")
BASELINES = ("mtdt", "prompt-dt", "prompt-bc", "prompt-dt-wide", "harmo-dt", "harmo-dt-published")
"""Methods with one network without experts, trained for the published baselines' number of steps."""
BANK_METHODS = ("bank-mixture", "bank-backbone", "bank-routed", "bank-oracle")
"""Methods that act in different ways with one bank; see `methods.one_bank`."""
M3DT_METHODS = (
    *("m3dt-random", "m3dt-gradient", "m3dt-end-to-end", "m3dt-no-grouping", "m3dt-random-unfrozen", "m3dt-gradient-unfrozen"),
    *("m3dt-all-tasks", "m3dt-oracle", "m3dt-top-k", "m3dt-sample-router", "m3dt-big-experts", "m3dt-published-residual"),
)
WIDTHS = (128, 256, 512, 1024, 1536)
"""Widths of Prompt-DT in the paper (appendix A.5), with 1.47M, 5.29M, 20.0M, 77.8M and 173.3M parameters."""
SMALL, LARGE = WIDTHS[0], WIDTHS[-1]
EXPERT_COUNTS = (8, 16, 24, 32, 40, 48)
BASELINE_STEPS = 1_000_000
"""Training steps of the paper's baselines, of 16 windows each (from the specification of this benchmark)."""

SHAPE = {"embed_dim": 256, "n_layers": 6, "n_heads": 8, "context_length": 20, "prompt_length": 5, "dropout": 0.1}
"""The shape of M3DT: appendix A.5 of the paper; context and prompt from the published code."""
SCHEDULE = {
    "backbone_steps": 400_000,
    "expert_steps": 200_000,
    "router_steps": 400_000,
    "warmup_steps": 10_000,
    "batch_size": 16,
    "tasks_per_batch": 1,
    "learning_rate": 1e-4,
    "router_learning_rate": 1e-4,
    "grouping_batches": 10,
    "grouping_runs": 40,
}
"""The training of M3DT, the same numbers as the paper presets of `m3dt_agent.config`."""
PROTOCOL = {
    "demonstrations": 1_000,
    "episodes": 25,
    "eval_seed": EVALUATION_SEED,
    "stop_on_success": True,
    "precision": "float32",
    "threads": 1,
}
"""Our choices. The number of demonstrations is about that of the published data (1002 to 1998 per task). Once a Meta-World
episode has succeeded it stays a success, so stopping there saves time and does not change the score. Results depend on the
number of threads, so it is fixed at one."""
_STEPS = ("backbone_steps", "expert_steps", "router_steps", "warmup_steps")
_HARMO_SWAP_EVERY = 500  # steps, from the published code of HarmoDT
_COUNTS_BY_SIZE = (8, 24, 40)
_TASKS_PER_EXPERT = 4
_FEWEST_STEPS = 20  # of a stage at any scale, because fewer would train nothing


@dataclass(frozen=True, slots=True)
class Scale:
    """How a scale changes the paper's numbers.

    share: fraction of the paper's steps; shares: of some settings, by name, where it is another. widths, experts: the paper's
    number → ours. sizes: size of a task set in the paper → ours, for those that shrink. seeds, single_tasks: how many of an
    experiment's seeds and of its one-task sets are used (None: all). replaced: settings with other values. added: settings that
    the paper lacks, of every method that is trained.
    """

    share: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)
    widths: Mapping[int, int] = field(default_factory=dict)
    experts: Mapping[int, int] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    seeds: int | None = None
    single_tasks: int | None = None
    replaced: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The paper's `settings` at this scale. Steps of 0 stay 0."""
        scaled = {**settings, **{name: value for name, value in self.replaced.items() if name in settings}}
        if "embed_dim" in settings:
            scaled = {**self.added, **scaled}
        for name in _STEPS:
            if settings.get(name):
                steps = round(self.shares.get(name, self.share) * settings[name])
                scaled[name] = max(1 if name == "warmup_steps" else _FEWEST_STEPS, steps)
        for name, table in (("embed_dim", self.widths), ("n_experts", self.experts)):
            if name in settings:
                scaled[name] = table.get(settings[name], settings[name])
        return scaled


_FASTER = {"learning_rate": 1e-3, "router_learning_rate": 3e-4}  # as in the quickstart: few steps need larger rates
_IMITATION = {
    "use_returns": False,
    "use_timesteps": False,
    "use_embed_norm": False,
    "embedding_std": 0.2,
    "block_std": 0.06,
    "grad_clip": 10.0,
    "cooldown": 0.2,
    "guide": 0.1,
}
"""What models of little training need to act as their demonstrators do (`pretrained.md`)."""

SCALES: Mapping[str, Scale] = {
    "paper": Scale(),
    "small": Scale(
        share=1 / 20,
        widths=dict(zip(WIDTHS, (64, 128, 256, 512, 768), strict=True)),
        replaced={**_FASTER, "n_layers": 4, "n_heads": 4, "batch_size": 64, "demonstrations": 200, "harmo_swap_every": 100},
    ),
    "laptop": Scale(
        share=1 / 200,
        widths=dict(zip(WIDTHS, (32, 64, 128, 256, 384), strict=True)),
        seeds=2,
        single_tasks=16,
        replaced={
            **_FASTER,
            "n_layers": 3,
            "n_heads": 4,
            "context_length": 8,
            "batch_size": 32,
            "tasks_per_batch": None,
            "harmo_swap_every": 100,
            "grouping_batches": 5,
            "grouping_runs": 10,
            "demonstrations": 40,
        },
    ),
    "box": Scale(
        share=1 / 10,
        widths=dict(zip(WIDTHS, (64, 128, 256, 512, 768), strict=True)),
        experts=dict(zip(EXPERT_COUNTS, (4, 8, 10, 12, 16, 20), strict=True)),
        replaced={
            **_FASTER,
            "router_learning_rate": 1e-3,
            "n_layers": 3,
            "n_heads": 4,
            "context_length": 8,
            "batch_size": 64,
            "tasks_per_batch": None,
            "grouping_batches": 5,
            "grouping_runs": 10,
            "demonstrations": 80,
        },
    ),
    "wheel": Scale(
        share=1 / 50,
        shares={"expert_steps": 1 / 100, "router_steps": 3 / 800},
        widths=dict(zip(WIDTHS, (64, 128, 256, 512, 768), strict=True)),
        experts=dict(zip(EXPERT_COUNTS, (5, 10, 15, 19, 24, 29), strict=True)),
        replaced={
            **_FASTER,
            "router_learning_rate": 1e-3,
            "n_layers": 3,
            "n_heads": 4,
            "context_length": 1,
            "prompt_length": 2,
            "dropout": 0.0,
            "batch_size": 256,
            "tasks_per_batch": 32,
            "grouping_batches": 5,
            "grouping_runs": 10,
            "demonstrations": 80,
        },
        added=_IMITATION,
    ),
    "smoke": Scale(
        share=1 / 1000,
        widths=dict(zip(WIDTHS, (16, 32, 48, 64, 96), strict=True)),
        experts=dict(zip(EXPERT_COUNTS, (4, 5, 6, 7, 8, 9), strict=True)),  # at most one per task, at least top-k's 4
        sizes={10: 4, 20: 6, 40: 10, 80: 11, 120: 12, 160: 13},
        seeds=1,
        single_tasks=4,
        replaced={
            **_FASTER,
            "n_layers": 2,
            "n_heads": 4,
            "context_length": 8,
            "prompt_length": 3,
            "batch_size": 32,
            "harmo_swap_every": 50,
            "grouping_batches": 3,
            "grouping_runs": 5,
            "demonstrations": 24,
            "episodes": 3,
        },
    ),
}


def published_settings(method: str, size: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a method's model and training depend on, for `size` tasks, in the paper's numbers.

    What the method does not use is 0 or left out. A method that is not the benchmark's own is a baseline. changes: settings
    with other values.
    """
    if method in UNTRAINED:
        return {**PROTOCOL, **changes}
    values: dict[str, Any] = {**SHAPE, **SCHEDULE, **PROTOCOL, "target_return_factor": 1.0, "n_experts": experts_for(size)}
    if method not in (*M3DT_METHODS, *BANK_METHODS):
        values |= {"backbone_steps": BASELINE_STEPS, "expert_steps": 0, "router_steps": 0}
        if method != "prompt-dt-wide":  # which has M3DT's width and the inner width of all its experts
            values |= {"embed_dim": SMALL, "n_experts": 0}
    if method.startswith("harmo-dt"):
        values["harmo_swap_every"] = _HARMO_SWAP_EVERY
    return values | dict(changes)


def experts_for(size: int) -> int:
    """The number of experts for `size` tasks: whichever of 8, 24 and 40 is nearest to one expert for every four tasks.

    The paper's numbers are 8 for 10 tasks and 24 for 80 (parameter counts in a summary of it) and 40 for 160 (the specification
    of this benchmark). The rule gives these; for other sizes it is our choice.
    """
    return min(_COUNTS_BY_SIZE, key=lambda count: abs(count - size / _TASKS_PER_EXPERT))
