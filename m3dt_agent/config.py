"""Every setting in one place: frozen dataclasses, validated on creation, with presets.

    ModelConfig       shape of the network                  presets tiny, small, paper
    DataConfig        statistics, prompts, target returns   presets default, paper
    TrainConfig       what all stages share
      BackboneConfig  + gradient-conflict early stop        stage 1
      ExpertsConfig   + grouping, experts at once           stage 2
      RouterConfig                                          stage 3
    EvalConfig        episodes, seeds, slots

The `paper` presets follow the published *code* (context 20, prompt 5, AdamW), from which the published numbers come; Table 5 of
arXiv 2505.24378 says "prompt length 20" and "Adam" instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from .errors import ConfigError
from .tasks import DOMAINS, MAX_ACT_DIM, MAX_OBS_DIM, lookup

Stage = Literal["backbone", "experts", "router"]
STAGES: tuple[Stage, ...] = ("backbone", "experts", "router")

C = TypeVar("C")


def stage_name(stage: str | int) -> Stage:
    """The stage called `stage`, or numbered 1, 2 or 3.

    Raises:
        UnknownTaskError: neither a stage's name nor its number.
    """
    by_name: dict[str, Stage] = {name: name for name in STAGES} | {str(i): name for i, name in enumerate(STAGES, 1)}
    return lookup(by_name, str(stage), "stage")


def _require(ok: bool, config: object, field: str, valid: str) -> None:
    if not ok:
        raise ConfigError(f"{type(config).__name__}.{field} must be {valid}; got {getattr(config, field)!r}")


def _require_positive(config: object, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _require(isinstance(value, int) and not isinstance(value, bool) and value >= 1, config, field, "an integer >= 1")


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """A config from a plain dict (as stored in a bank); unknown or missing keys are errors that name them.

    Raises:
        ConfigError: unknown keys, missing keys, or values that do not validate.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the network (M3DT section 4 and appendix A.5).

    embed_dim D, n_layers, n_heads: the GPT-2 backbone. n_experts E: experts per block; 0 is a backbone alone. context_length T
    and prompt_length: steps (not tokens). residual: "standard" adds a block's feed-forward sum to x, "published" adds it to
    LN(x) in blocks with experts, as the authors' code does. top_k: route each token to its k heaviest experts; None is dense,
    as in the paper. ffn_multiple: the backbone's feed-forward layers are this many D wide inside; experts are always 4D.
    """

    embed_dim: int
    n_layers: int
    n_heads: int
    n_experts: int
    context_length: int
    prompt_length: int
    max_timesteps: int = 1000
    state_dim: int = MAX_OBS_DIM
    act_dim: int = MAX_ACT_DIM
    dropout: float = 0.1
    residual: Literal["standard", "published"] = "standard"
    top_k: int | None = None
    ffn_multiple: int = 4

    def __post_init__(self) -> None:
        _require_positive(
            self,
            *("embed_dim", "n_layers", "n_heads", "context_length", "prompt_length"),
            *("max_timesteps", "state_dim", "act_dim", "ffn_multiple"),
        )
        _require(isinstance(self.n_experts, int) and self.n_experts >= 0, self, "n_experts", "an integer >= 0")
        _require(self.embed_dim % self.n_heads == 0, self, "n_heads", f"a divisor of embed_dim={self.embed_dim}")
        _require(0.0 <= self.dropout < 1.0, self, "dropout", "in [0, 1)")
        _require(self.residual in ("standard", "published"), self, "residual", "'standard' or 'published'")
        if self.top_k is not None:
            _require(1 <= self.top_k <= self.n_experts, self, "top_k", f"None or 1 … n_experts={self.n_experts}")

    @property
    def n_tokens(self) -> int:
        """Tokens of a prompt and a window; the last action is left out."""
        return 3 * (self.prompt_length + self.context_length) - 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as banks store and hash them: those that came after the first banks only where they are not the default,
        so that a bank made before has the same content hash, and one made now is read by what made the first."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if _NEWER_FIELDS.get(name, _NOTHING) != value}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """`tiny` (tests), `small` (quickstart), `paper` (48 experts); keyword arguments replace single fields.

        Raises:
            UnknownTaskError: no preset of that name.
            ConfigError: a changed field does not validate.
        """
        return dataclasses.replace(lookup(_MODEL_PRESETS, name, "model preset"), **changes)


_NOTHING = object()
_NEWER_FIELDS: dict[str, Any] = {"ffn_multiple": 4}

_MODEL_PRESETS = {
    "tiny": ModelConfig(32, 2, 2, n_experts=3, context_length=5, prompt_length=3),
    "small": ModelConfig(128, 3, 4, n_experts=4, context_length=8, prompt_length=5),
    "paper": ModelConfig(256, 6, 8, n_experts=48, context_length=20, prompt_length=5),
}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """How statistics, prompts and target returns are made from a dataset (DESIGN section 4).

    std_floor: a deviation below it is treated as constant. constant_std: what replaces such a deviation (None: std_floor
    itself, as published). state_clip: normalized states are clipped to ± this (None: not at all, as published). n_prompts:
    best-return episodes per task kept out of training as prompts. target_return: "data" is the mean return of those episodes,
    "published" the constants of the task table.
    """

    std_floor: float = 1e-3
    constant_std: float | None = 1.0
    state_clip: float | None = 10.0
    n_prompts: int = 2
    target_return: Literal["data", "published"] = "data"

    def __post_init__(self) -> None:
        _require(self.std_floor > 0, self, "std_floor", "> 0")
        _require(self.constant_std is None or self.constant_std > 0, self, "constant_std", "None or > 0")
        _require(self.state_clip is None or self.state_clip > 0, self, "state_clip", "None or > 0")
        _require_positive(self, "n_prompts")
        _require(self.target_return in ("data", "published"), self, "target_return", "'data' or 'published'")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DataConfig:
        """`default`, or `paper` (floor 1e-6, no clipping, published target returns).

        Raises:
            UnknownTaskError: no preset of that name.
        """
        paper = cls(std_floor=1e-6, constant_std=None, state_clip=None, target_return="published")
        return dataclasses.replace(lookup({"default": cls(), "paper": paper}, name, "data preset"), **changes)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What every stage shares. Defaults are the published code's (DESIGN section 5), except `steps`.

    warmup_steps, cooldown_steps: the learning rate rises linearly over the first and falls to nothing over the last of `steps`;
    with fewer steps than both take together it never reaches `learning_rate`.
    batch_size: windows per step (per expert in stage 2). tasks_per_batch: tasks mixed in one batch; 1 is the published
    schedule, None is as many as there are windows. domain_weights: {"dmcontrol": 3} draws tasks of that domain three times as
    often as those of domains without a weight; {} is as published. threads: torch CPU threads, recorded with the run because
    results depend on it; None is what torch has when the run starts. precision: "float32", "bfloat16" (autocast, float32
    masters), "float64" (proofs), or "auto": whichever of the first two is faster here, measured when the stage starts.
    """

    stage: ClassVar[Stage]

    steps: int
    batch_size: int = 16
    tasks_per_batch: int | None = None
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    grad_clip: float = 0.25
    warmup_steps: int = 10_000
    cooldown_steps: int = 0
    domain_weights: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float64", "auto"] = "float32"
    threads: int | None = None
    checkpoint_every: int = 1_000
    log_every: int = 100

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "batch_size", "checkpoint_every", "log_every")
        for field in ("tasks_per_batch", "threads"):
            if getattr(self, field) is not None:
                _require_positive(self, field)
        _require((self.tasks_per_batch or 1) <= self.batch_size, self, "tasks_per_batch", "<= batch_size")
        for field in ("learning_rate", "grad_clip"):
            _require(getattr(self, field) > 0, self, field, "> 0")
        for field in ("weight_decay", "warmup_steps", "cooldown_steps", "seed"):
            _require(getattr(self, field) >= 0, self, field, ">= 0")
        for domain, weight in self.domain_weights.items():
            known = isinstance(weight, int) and weight > 0 and domain in DOMAINS
            _require(known, self, "domain_weights", f"weights > 0 of {', '.join(DOMAINS)}")
        precisions = ("float32", "bfloat16", "float64", "auto")
        _require(self.precision in precisions, self, "precision", f"one of {', '.join(map(repr, precisions))}")


@dataclass(frozen=True, slots=True)
class BackboneConfig(TrainConfig):
    """Stage 1. conflict_every: measure gradient conflict every N steps (0: never). early_stop: end when the smoothed conflict
    has not risen for `conflict_patience` measurements (M3DT section 4.3: the backbone stops where conflict peaks)."""

    stage: ClassVar[Stage] = "backbone"

    conflict_every: int = 0
    early_stop: bool = False
    conflict_patience: int = 5

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        _require(self.conflict_every >= 0, self, "conflict_every", ">= 0")
        _require_positive(self, "conflict_patience")
        _require(not self.early_stop or self.conflict_every > 0, self, "early_stop", "False unless conflict_every > 0")


@dataclass(frozen=True, slots=True)
class ExpertsConfig(TrainConfig):
    """Stage 2. grouping: how tasks are split over experts. experts_at_once: experts trained stacked in one run (None: all on
    a GPU, as many as the cache holds on a CPU; settled when the stage starts). grouping_batches, grouping_runs: batches of
    gradients averaged per task, K-means runs of which the most balanced is kept."""

    stage: ClassVar[Stage] = "experts"

    grouping: Literal["random", "gradient"] = "gradient"
    grouping_batches: int = 10
    grouping_runs: int = 40
    experts_at_once: int | None = None

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        _require(self.grouping in ("random", "gradient"), self, "grouping", "'random' or 'gradient'")
        _require_positive(self, "grouping_batches", "grouping_runs")
        if self.experts_at_once is not None:
            _require_positive(self, "experts_at_once")


@dataclass(frozen=True, slots=True)
class RouterConfig(TrainConfig):
    """Stage 3. skip_below: a window's experts whose router weight is smaller at each of its tokens are left out of a block, in
    that step only, and the others' weights renormalised (0: none are). concentrate: from `concentrate_after` of the steps on,
    this times the entropy of each window's mean router weights (nats, mean over windows and blocks) is added to the loss, so
    that acting needs fewer experts (0: as published). guide: this times the cross-entropy between the router's weights and the
    expert of the window's own group (nats, mean over windows, blocks and tokens) is added to the loss, since with many tasks
    the action error alone finds the experts of few tasks slowly or not at all (0: as published)."""

    stage: ClassVar[Stage] = "router"

    skip_below: float = 0.0
    concentrate: float = 0.0
    concentrate_after: float = 0.5
    guide: float = 0.0

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        _require(0.0 <= self.skip_below < 1.0, self, "skip_below", "in [0, 1)")
        for field in ("concentrate", "guide"):
            _require(getattr(self, field) >= 0.0, self, field, ">= 0")
        _require(0.0 <= self.concentrate_after <= 1.0, self, "concentrate_after", "in [0, 1]")


_STAGE_CONFIGS: dict[str, type[BackboneConfig] | type[ExpertsConfig] | type[RouterConfig]] = {
    "backbone": BackboneConfig,
    "experts": ExpertsConfig,
    "router": RouterConfig,
}
_PRESET_STEPS = {  # paper: M3DT appendix A.5
    "tiny": {"backbone": 200, "experts": 100, "router": 100},
    "small": {"backbone": 4_000, "experts": 1_000, "router": 1_000},
    "paper": {"backbone": 400_000, "experts": 200_000, "router": 400_000},
}
_PRESET_SHARED: dict[str, dict[str, Any]] = {
    "tiny": {"learning_rate": 1e-3, "warmup_steps": 20, "checkpoint_every": 50, "log_every": 10},
    "small": {"learning_rate": 1e-3, "warmup_steps": 200, "batch_size": 32, "checkpoint_every": 500, "log_every": 50},
    "paper": {"tasks_per_batch": 1, "warmup_steps": 10_000, "checkpoint_every": 5_000},
}
_STEPS_PER_WARMUP_STEP = 5
"""At least, in a preset: a stage shorter than its warm-up would never train at its learning rate."""


def train_preset(name: str, stage: str | int, **changes: Any) -> TrainConfig:
    """The preset `name` (tiny, small, paper) of a stage's config; keyword arguments replace single fields.

    With few `steps` the preset's warm-up is shortened to a fifth of them; a `warmup_steps` that is given stays as it is.

    Raises:
        UnknownTaskError: no such preset or stage.
        ConfigError: an unknown field, or one that does not validate.
    """
    stage = stage_name(stage)
    steps = lookup(_PRESET_STEPS, name, "training preset")[stage]
    fields = {"steps": steps, **_PRESET_SHARED[name], **changes}
    if "warmup_steps" not in changes and isinstance(fields["steps"], int):
        fields["warmup_steps"] = min(fields["warmup_steps"], fields["steps"] // _STEPS_PER_WARMUP_STEP)
    return from_dict(_STAGE_CONFIGS[stage], fields)


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Evaluation: `episodes` per task, with seeds `seed`, `seed` + 1, …, fixed before anything runs.

    slots: environments that run at once; one of a Meta-World task takes 10 to 30 MB. workers: processes they run in (0: this
    process; None: one per core). stop_on_success: end Meta-World episodes at success. rtg_mode: "rewards" lowers the
    return-to-go by each reward, "constant" does not. overlap: let the workers step one half of the slots while the policy acts
    for the other; None: for behavior policies, and agents on a GPU (one on the CPU needs the same cores). deterministic: torch
    has two CPU threads, whatever it had, and four tasks at a time are evaluated. What acts together never depends on time, so
    rows are then the same to the last bit on machines of one type, for any number of workers, here or in jobs, as long as
    tasks, episodes, `slots` and `overlap` are the same.
    """

    episodes: int = 10
    seed: int = 10_000
    slots: int = 32
    workers: int | None = None
    stop_on_success: bool = False
    rtg_mode: Literal["rewards", "constant"] = "rewards"
    overlap: bool | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "episodes", "slots")
        _require(0 <= self.seed < 2**32, self, "seed", "in [0, 2**32)")
        _require(self.workers is None or self.workers >= 0, self, "workers", "None or >= 0")
        _require(self.rtg_mode in ("rewards", "constant"), self, "rtg_mode", "'rewards' or 'constant'")
