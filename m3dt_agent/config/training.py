"""Settings of the three stages. Each is declared once, as a field with its help and whether it is an option of `m3dt train`.

The command line makes its options from these fields (cli/train/settings.py), and benchmarks look for settings of these names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from ..tasks import DOMAINS, known, lookup
from .checks import from_dict, require, require_positive, require_types, stored
from .stages import Stage, stage_name

TrainingPrecision = Literal["float32", "bfloat16", "float64", "auto"]
Grouping = Literal["random", "gradient"]
Labels = Literal["demonstrator", "executed"]

C = TypeVar("C")

_ADDED_LATER: dict[str, Any] = {
    "truncate_history": 0.0,
    "ema": 0.0,
    "labels": "demonstrator",
    "embedding_std": 0.02,
    "block_std": 0.02,
    "domain_experts": {},
}
"""Fields of the configs that the first banks did not have, with their defaults."""


def _about(text: str, *, option: bool = False) -> dict[str, Any]:
    """Metadata of a training setting. option: whether `m3dt train` has an option of this name."""
    return {"help": text, "option": option}


def _documented(cls: type[C]) -> type[C]:
    """Adds the help of a class's own fields to its docstring, where `help()` and the API reference find it."""
    own = [one for one in dataclasses.fields(cls) if one.name in cls.__annotations__]  # type: ignore[arg-type]
    lines = "".join(f"\n        {one.name}: {one.metadata['help']}" for one in own)
    cls.__doc__ = f"{cls.__doc__}\n\n    Attributes:{lines}\n    "
    return cls


def _require_of_domains(config: TrainConfig, name: str) -> None:
    """Checks a field that has a number for each of some domains."""
    for domain, number in getattr(config, name).items():
        there = domain in DOMAINS or any(task.domain == domain for task in known())
        require(number > 0 and there, config, name, f"integers > 0 of {', '.join(DOMAINS)}, or of your own")


@_documented
@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings that every stage has. The defaults are those of the published code (docs/architecture.md#training).

    A stage with fewer steps than `warmup_steps` and `cooldown_steps` together never reaches `learning_rate`. In bfloat16 the
    products run under autocast and trained weights stay float32; float64 is for proofs.
    """

    stage: ClassVar[Stage]

    steps: int = field(metadata=_about("Steps of each stage trained.", option=True))
    batch_size: int = field(default=16, metadata=_about("Windows per step; in stage 2 per expert.", option=True))
    tasks_per_batch: int | None = field(
        default=None, metadata=_about("Tasks mixed in a batch: 1 as published; None: up to one per window.")
    )
    learning_rate: float = field(default=1e-4, metadata=_about("AdamW's learning rate.", option=True))
    weight_decay: float = field(default=1e-4, metadata=_about("AdamW's weight decay."))
    grad_clip: float = field(
        default=0.25, metadata=_about("Largest norm of a gradient; in stage 2 of each expert's.", option=True)
    )
    warmup_steps: int = field(
        default=10_000,
        metadata=_about("First steps, over which the learning rate rises linearly from 0.", option=True),
    )
    cooldown_steps: int = field(
        default=0, metadata=_about("Last steps, over which the learning rate falls linearly to 0.", option=True)
    )
    domain_weights: Mapping[str, int] = field(
        default_factory=dict,
        metadata=_about(
            "How many times as often tasks of a domain are drawn, like dmcontrol:3,metaworld:2; others count once.", option=True
        ),
    )
    labels: Labels = field(
        default="demonstrator",
        metadata=_about(
            "Actions to predict: the demonstrator's own, where the data have them beside those executed; or executed.",
            option=True,
        ),
    )
    truncate_history: float = field(
        default=0.0,
        metadata=_about("Probability that the steps of a window before a random one of it are hidden.", option=True),
    )
    ema: float = field(
        default=0.0,
        metadata=_about(
            "Decay of the running average of the weights, which the bank gets; 0: it gets the last weights.", option=True
        ),
    )
    seed: int = field(default=0, metadata=_about("Seed of everything random.", option=True))
    precision: TrainingPrecision = field(
        default="float32",
        metadata=_about("Of the products; auto: float32 or bfloat16, whichever is measured to be faster here.", option=True),
    )
    threads: int | None = field(
        default=None, metadata=_about("Torch's CPU threads, part of the result; by default as many as torch has.", option=True)
    )
    checkpoint_every: int = field(default=1_000, metadata=_about("Steps between checkpoints.", option=True))
    log_every: int = field(default=100, metadata=_about("Steps between rows of the log."))

    def to_dict(self) -> dict[str, Any]:
        """The fields as banks and checkpoints store them; those added later only where they differ from their default."""
        return stored(self, _ADDED_LATER)

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "steps", "batch_size", "checkpoint_every", "log_every", "tasks_per_batch", "threads")
        require((self.tasks_per_batch or 1) <= self.batch_size, self, "tasks_per_batch", "<= batch_size")
        for name in ("learning_rate", "grad_clip"):
            require(getattr(self, name) > 0, self, name, "> 0")
        for name in ("weight_decay", "warmup_steps", "cooldown_steps"):
            require(getattr(self, name) >= 0, self, name, ">= 0")
        require(0.0 <= self.truncate_history <= 1.0, self, "truncate_history", "in [0, 1]")
        require(0.0 <= self.ema < 1.0, self, "ema", "in [0, 1)")
        require(0 <= self.seed < 2**63, self, "seed", "in [0, 2**63)")
        _require_of_domains(self, "domain_weights")


@_documented
@dataclass(frozen=True, slots=True)
class BackboneConfig(TrainConfig):
    """Stage 1. With `early_stop` it ends where gradient conflict between tasks peaks (M3DT section 4.3)."""

    stage: ClassVar[Stage] = "backbone"

    conflict_every: int = field(default=0, metadata=_about("Measure gradient conflict every N steps; 0: never.", option=True))
    early_stop: bool = field(
        default=False, metadata=_about("End when gradient conflict has peaked; needs --conflict-every.", option=True)
    )
    conflict_patience: int = field(default=5, metadata=_about("Measurements without a new peak after which it has peaked."))
    embedding_std: float = field(
        default=0.02,  # GPT-2's, as all initial weights
        metadata=_about("Standard deviation of the first weights that embed states and actions.", option=True),
    )
    block_std: float = field(
        default=0.02,  # GPT-2's, whose blocks are six times as wide as a small model's
        metadata=_about("Standard deviation of the first weight matrices of the blocks.", option=True),
    )

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        require(self.conflict_every >= 0, self, "conflict_every", ">= 0")
        require_positive(self, "conflict_patience")
        for name in ("embedding_std", "block_std"):
            require(getattr(self, name) > 0, self, name, "> 0")
        require(not self.early_stop or self.conflict_every > 0, self, "early_stop", "False unless conflict_every > 0")


@_documented
@dataclass(frozen=True, slots=True)
class ExpertsConfig(TrainConfig):
    """Stage 2. With `experts_at_once` None, the stage settles the number when it starts and keeps it."""

    stage: ClassVar[Stage] = "experts"

    grouping: Grouping = field(default="gradient", metadata=_about("How tasks are split over the experts.", option=True))
    grouping_batches: int = field(default=10, metadata=_about("Batches over which a task's gradient is averaged."))
    grouping_runs: int = field(default=40, metadata=_about("K-means runs, of which the most balanced is kept."))
    domain_experts: Mapping[str, int] = field(
        default_factory=dict,
        metadata=_about(
            "Experts that a domain has to itself, like ant-dir:1,cheetah-vel:1; the other tasks share the rest.", option=True
        ),
    )
    experts_at_once: int | None = field(
        default=None,
        metadata=_about("Experts trained together; by default all on a GPU, as many as its cache holds on a CPU.", option=True),
    )

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        require_positive(self, "grouping_batches", "grouping_runs", "experts_at_once")
        _require_of_domains(self, "domain_experts")


@_documented
@dataclass(frozen=True, slots=True)
class RouterConfig(TrainConfig):
    """Stage 3. The three options below are off (0) as published; training/router.py has the formula of the loss.
    Every preset but `paper` has `guide`.

    `concentrate` makes acting cheaper, because a window then needs fewer experts. `guide` helps with many tasks, where the
    action error alone finds the experts of small groups slowly or not at all.
    """

    stage: ClassVar[Stage] = "router"

    skip_below: float = field(
        default=0.0,
        metadata=_about("In each step, skip the experts whose weight is below this at every token of a window.", option=True),
    )
    concentrate: float = field(
        default=0.0, metadata=_about("Weight in the loss of the entropy of each window's mean router weights.", option=True)
    )
    concentrate_after: float = field(default=0.5, metadata=_about("Fraction of the steps after which `concentrate` counts."))
    guide: float = field(
        default=0.0,
        metadata=_about(
            "Weight in the loss of the cross-entropy with the expert of each window's own group, if the bank has groups.",
            option=True,
        ),
    )

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        require(0.0 <= self.skip_below < 1.0, self, "skip_below", "in [0, 1)")
        for name in ("concentrate", "guide"):
            require(getattr(self, name) >= 0.0, self, name, ">= 0")
        require(0.0 <= self.concentrate_after <= 1.0, self, "concentrate_after", "in [0, 1]")


STAGE_CONFIGS: Mapping[Stage, type[TrainConfig]] = {
    "backbone": BackboneConfig,
    "experts": ExpertsConfig,
    "router": RouterConfig,
}

_PRESET_STEPS = {  # paper: M3DT appendix A.5
    "tiny": {"backbone": 200, "experts": 100, "router": 100},
    "quick": {"backbone": 1_000, "experts": 300, "router": 200},
    "small": {"backbone": 4_000, "experts": 1_000, "router": 1_000},
    "paper": {"backbone": 400_000, "experts": 200_000, "router": 400_000},
}
_PRESET_SHARED: dict[str, dict[str, Any]] = {
    "tiny": {"learning_rate": 1e-3, "warmup_steps": 20, "checkpoint_every": 50, "log_every": 10},
    "quick": {
        "learning_rate": 1e-3,
        "warmup_steps": 50,
        "batch_size": 256,
        "cooldown_steps": 100,
        "grad_clip": 10.0,
        "checkpoint_every": 500,
        "log_every": 20,
    },
    "small": {"learning_rate": 1e-3, "warmup_steps": 200, "batch_size": 32, "checkpoint_every": 500, "log_every": 50},
    "paper": {"tasks_per_batch": 1, "warmup_steps": 10_000, "checkpoint_every": 5_000, "labels": "executed"},
}
_PRESET_OF_STAGE: dict[tuple[str, Stage], dict[str, Any]] = {
    ("quick", "backbone"): {"embedding_std": 0.2, "block_std": 0.09},
    ("quick", "experts"): {"batch_size": 64},  # per expert
    ("quick", "router"): {"learning_rate": 3e-4, "guide": 0.1},
    ("tiny", "router"): {"guide": 0.1},
    ("small", "router"): {"guide": 0.1},
}
_LONGEST_WARMUP = 5
"""A preset's warm-up, and its cool-down, take at most one in so many of the steps, so that short stages train at their rate."""


def train_preset(name: str, stage: str | int, **changes: Any) -> TrainConfig:
    """The preset `name` (tiny, quick, small, paper) of a stage's config; keyword arguments replace single fields.

    With few `steps` the preset's warm-up and cool-down are shortened to a fifth of them each; those that are given stay.

    Raises:
        UnknownTaskError: no such preset or stage.
        ConfigError: an unknown field, or one that does not validate.
    """
    stage = stage_name(stage)
    steps = lookup(_PRESET_STEPS, name, "training preset")[stage]
    values = {"steps": steps, **_PRESET_SHARED[name], **_PRESET_OF_STAGE.get((name, stage), {}), **changes}
    for part in {"warmup_steps", "cooldown_steps"} & (values.keys() - changes.keys()):
        if isinstance(values["steps"], int):
            values[part] = min(values[part], values["steps"] // _LONGEST_WARMUP)
    return from_dict(STAGE_CONFIGS[stage], values)
