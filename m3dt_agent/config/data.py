"""How datasets become statistics, prompts and target returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ..tasks import lookup
from .checks import require, require_positive, require_types

_MOST_PROMPTS = 1000
"""Prompt episodes of a task; each is kept out of training, and every bank of the task holds a copy of its end."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """How statistics, prompts and target returns are made from a dataset (docs/architecture.md#data).

    std_floor: a standard deviation below it counts as constant. constant_std: what replaces such a deviation (None: std_floor
    itself, as published). state_clip: normalized states are clipped to ± this (None: not at all, as published). n_prompts:
    best-return episodes per task that are kept out of training and used as prompts. target_return: "data" is the mean return
    of those episodes, "published" the constants of the task table.
    """

    std_floor: float = 1e-3
    constant_std: float | None = 1.0
    state_clip: float | None = 10.0
    n_prompts: int = 2
    target_return: Literal["data", "published"] = "data"

    def __post_init__(self) -> None:
        require_types(self)
        require(self.std_floor > 0, self, "std_floor", "> 0")
        require(self.constant_std is None or self.constant_std > 0, self, "constant_std", "None or > 0")
        require(self.state_clip is None or self.state_clip > 0, self, "state_clip", "None or > 0")
        require_positive(self, "n_prompts")
        require(self.n_prompts <= _MOST_PROMPTS, self, "n_prompts", f"at most {_MOST_PROMPTS:,}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DataConfig:
        """`default`, or `paper` (floor 1e-6, no clipping, published target returns); keyword arguments replace single fields.

        Raises:
            UnknownTaskError: no preset of that name.
            ConfigError: a changed field does not validate.
        """
        paper = cls(std_floor=1e-6, constant_std=None, state_clip=None, target_return="published")
        return dataclasses.replace(lookup({"default": cls(), "paper": paper}, name, "data preset"), **changes)
