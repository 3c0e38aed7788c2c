"""What the quickstart runs on: its eight tasks, its budget, and the settings of a run.

The tasks were chosen by measurement: behavior policies score 96 or more on each, random actions at most 6, and the zero action
10 on average (standing still earns 40 on ant-dir, and the pole takes a while to fall).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..config import STAGES, ModelConfig, Stage, TrainConfig, train_preset
from ..errors import ConfigError

TASKS = (
    *("drawer-open", "window-close", "button-press-topdown", "faucet-open"),
    *("cartpole-balance-sparse", "walker-walk"),
    *("ant-dir-10", "cheetah-vel-22"),
)
POLICIES = ("random", "zero", "backbone", "final")

NOISE = {"metaworld": 0.2, "dmcontrol": 0.3, "ant-dir": 0.2, "cheetah-vel": 0.3}
"""Standard deviation of the action noise in half of the demonstrations, by domain.

Chosen from single trial runs of 1,500 backbone steps with no noise, 0.2 and 0.3, with three or four episodes per task; one or
two of the other tasks differed too. Scores: cheetah-vel-22 0, 87, 95; ant-dir-10 100, 96, 73; cartpole-balance-sparse not run,
49, 100. Our guess why noise helps: without it, actions are so smooth that repeating the last one fits the data."""
STAGE_SECONDS: Mapping[Stage, float] = {"backbone": 100.0, "experts": 60.0, "router": 40.0}
"""How long each stage may train; 20 s of the 220 are left for checkpoints and grouping."""
MODEL = ModelConfig.preset("quick", embed_dim=128, n_layers=3, n_heads=4)
"""The quick preset, wider and deeper: eight tasks are more than it is made for."""
THREADS = 1
"""Torch's CPU threads. On a shared machine with two cores, a step with two threads took 20 to 50 times as long as with one
while other processes ran, and about as long at a quieter moment."""
HELD_OUT_SEED = 1_000_000
"""Added to the run's seed for held-out demonstrations, so that training never sees their episodes."""
HELD_OUT_WINDOWS = 1024
"""Windows per task on which the action error is measured."""


@dataclass(frozen=True, slots=True)
class QuickstartConfig:
    """What a run depends on.

    steps: of the three stages; None is as many as this machine does in the budget. precision: of training; bfloat16 may be
    faster, and costs precision of the actions. demonstrations, held_out: episodes per task. episodes: evaluated per task and
    policy. workers: simulator processes (None: one per core); they change nothing but the time.
    """

    steps: tuple[int, int, int] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    demonstrations: int = 200
    held_out: int = 24
    episodes: int = 10
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and (len(self.steps) != len(STAGES) or min(self.steps) < 1):
            raise ConfigError(f"steps must be three integers >= 1, one per stage; got {self.steps!r}")
        for name in ("demonstrations", "held_out"):
            if getattr(self, name) < 3:  # two are kept as prompts
                raise ConfigError(f"QuickstartConfig.{name} must be an integer >= 3; got {getattr(self, name)!r}")


def parse_steps(text: str | None) -> tuple[int, int, int] | None:
    """(1500, 300, 200) from "1500,300,200"; None from None.

    Raises:
        ConfigError: not three integers.
    """
    if text is None:
        return None
    try:
        backbone, experts, router = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--steps takes the steps of the three stages, as in 1500,300,200; got {text!r}") from None
    return backbone, experts, router


def stage_config(stage: Stage, steps: int, precision: str, seed: int) -> TrainConfig:
    """The quick preset's config of a stage; the learning rate falls to nothing in the last fifth of the steps."""
    settings: dict[str, Any] = {"precision": precision, "seed": seed, "threads": THREADS, "cooldown_steps": steps // 5}
    if stage == "experts":
        settings |= {"grouping_batches": 5, "grouping_runs": 10}
    return train_preset("quick", stage, steps=steps, **settings)
