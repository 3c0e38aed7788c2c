"""Which experts act, in which precision, and how the return-to-go goes on: the agent's options and their defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..bank import ExpertBank
from ..model import Routing

if TYPE_CHECKING:
    pass


Experts = Literal["none", "mixture"] | Routing | int
Precision = Literal["float32", "bfloat16", "auto"]
RtgMode = Literal["rewards", "constant"]
ROUTED_MASS = 0.99
"""Of the router's weight: `benchmarks/results/2026-11-25-routing-study.md`."""


def default_experts(bank: ExpertBank) -> Experts:
    """What a bank's agent uses unless told otherwise.

    Where stage 3 concentrated the router, the experts that carry ROUTED_MASS: in the routing study they score as all do.
    """
    concentrated = bank.manifest.stages.get("router", {}).get("config", {}).get("concentrate", 0.0) > 0
    return Routing(mass=ROUTED_MASS) if concentrated and bank.default_experts == "mixture" else bank.default_experts
