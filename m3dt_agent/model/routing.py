"""Decides which experts of a block each row of a batch uses, by the router's weights, so that the others need not be computed.

    router w (B, S, E) ──► mean over a row's real tokens ──► heaviest first until `mass` is carried ──► kept (B, E)
                                                                                                    └─► the rest is renormalised

The decision is made anew in every block and at every step. The router always computes all E weights, so an expert that is left
out comes back as soon as its weight grows, and the weight that was left out is known exactly (`RoutingUsage`).

Shape legend: B rows (windows of the batch), S tokens, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.checks import require_types
from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Routing:
    """The mixture with only the heaviest experts of each row. An expert is used if it meets all conditions, or is the heaviest.

    mass: it belongs to the smallest set of experts that carries this share of the row's router weight, averaged over the row's
        real tokens; 1: every expert does.
    max_experts: it is among this many heaviest; None: no limit.
    min_weight: its weight is at least this at one real token or more.

    Raises:
        ConfigError: mass is outside (0, 1], max_experts below 1, min_weight outside [0, 1), or no number.
    """

    mass: float = 1.0
    max_experts: int | None = None
    min_weight: float = 0.0

    def __post_init__(self) -> None:
        require_types(self)
        if not 0.0 < self.mass <= 1.0:
            raise ConfigError(f"mass must be in (0, 1]; got {self.mass!r}")
        if self.max_experts is not None and self.max_experts < 1:
            raise ConfigError(f"max_experts must be None or >= 1; got {self.max_experts!r}")
        if not 0.0 <= self.min_weight < 1.0:
            raise ConfigError(f"min_weight must be in [0, 1); got {self.min_weight!r}")

    def kept(self, weights: Tensor, real: Tensor) -> Tensor:
        """Whether each row uses each expert, (B, E) bool.

        weights: the router's, (B, S, E). real: (B, S) bool, False for padding.
        """
        masked = weights.detach() * real[..., None]
        ordered, order = _heaviest_first(masked.sum(1))  # (B, E) each
        wanted = torch.ones_like(ordered, dtype=torch.bool)
        if self.mass < 1.0:
            wanted &= ordered.cumsum(-1) - ordered < self.mass * ordered.sum(-1, keepdim=True)
        if self.max_experts is not None:
            wanted[:, self.max_experts :] = False
        if self.min_weight > 0.0:
            wanted &= masked.amax(1).gather(-1, order) >= self.min_weight
        wanted[:, 0] = True
        return torch.zeros_like(wanted).scatter(-1, order, wanted)


def _heaviest_first(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, E) in descending order, and the experts that they are of; among equal ones the lower number comes first."""
    if torch.compiler.is_compiling():  # ONNX has no stable sort, but its TopK orders equal values by their index
        ordered, order = weights.topk(weights.shape[-1], dim=-1)
    else:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    return ordered, order


@dataclass(frozen=True, slots=True, eq=False)
class RoutingUsage:
    """How many experts a routed pass used, and how much of the router's weight it left out, for L layers and B rows."""

    kept: Tensor  # (L, B) int64: number of experts used
    dropped: Tensor  # (L, B): share of the router's weight left out, mean over real tokens


def block_usage(weights: Tensor, kept: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The two fields of `RoutingUsage` for one block, (B,) each, from weights (B, S, E), kept (B, E) and real (B, S)."""
    left_out = (weights.detach() * ~kept[:, None]).sum(-1)  # (B, S)
    return kept.sum(-1), (left_out * real).sum(-1) / real.sum(-1).clamp(min=1)
