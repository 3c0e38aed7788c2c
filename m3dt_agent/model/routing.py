"""Routing that pays for what it uses: which experts of a block each row of a batch needs, decided from the router's weights.

    router w (B, S, E) ──► mean over a row's real tokens ──► heaviest first until `mass` is carried ──► kept (B, E)
                                                                                                    └─► the rest is renormalised

The decision is made anew in every block at every step, from all E weights, which the router computes anyway: an expert that is
left out now comes back as soon as it is asked for, and what was left out is known exactly (`RoutingUsage`).

Shape legend: as in `prompt_dt`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Routing:
    """The mixture, in which each row of a batch uses its heaviest experts only; every condition must hold of those.

    mass: the smallest set that carries this share of the row's router weights, mean over its real tokens (1: all experts).
    max_experts: at most so many. min_weight: none whose weight is smaller at every real token. The heaviest is always used.

    Raises:
        ConfigError: a share outside (0, 1], fewer than one expert, or a weight outside [0, 1).
    """

    mass: float = 1.0
    max_experts: int | None = None
    min_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mass <= 1.0:
            raise ConfigError(f"mass must be in (0, 1]; got {self.mass!r}")
        if self.max_experts is not None and self.max_experts < 1:
            raise ConfigError(f"max_experts must be None or >= 1; got {self.max_experts!r}")
        if not 0.0 <= self.min_weight < 1.0:
            raise ConfigError(f"min_weight must be in [0, 1); got {self.min_weight!r}")

    def kept(self, weights: Tensor, real: Tensor) -> Tensor:
        """Which experts each row uses, (B, E) bool, for weights (B, S, E) of tokens of which `real` (B, S) are not padding."""
        masked = weights.detach() * real[..., None]
        ordered, order = masked.sum(1).sort(dim=-1, descending=True, stable=True)  # (B, E)
        wanted = torch.ones_like(ordered, dtype=torch.bool)
        if self.mass < 1.0:
            wanted &= ordered.cumsum(-1) - ordered < self.mass * ordered.sum(-1, keepdim=True)
        if self.max_experts is not None:
            wanted[:, self.max_experts :] = False
        if self.min_weight > 0.0:
            wanted &= masked.amax(1).gather(-1, order) >= self.min_weight
        wanted[:, 0] = True
        return torch.zeros_like(wanted).scatter(-1, order, wanted)


@dataclass(frozen=True, slots=True, eq=False)
class RoutingUsage:
    """What a routed forward pass used."""

    kept: Tensor  # (L, B) int64: how many experts
    dropped: Tensor  # (L, B): share of the router's weight that went to others, mean over real tokens


def block_usage(weights: Tensor, kept: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """One block's part of a `RoutingUsage`, (B,) each; weights (B, S, E), kept (B, E), real (B, S)."""
    left_out = (weights.detach() * ~kept[:, None]).sum(-1)  # (B, S)
    return kept.sum(-1), (left_out * real).sum(-1) / real.sum(-1).clamp(min=1)
