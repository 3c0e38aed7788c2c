"""The agent's options: which experts act, in which precision, and how the return-to-go goes on."""

from __future__ import annotations

from typing import Literal, get_args

from ..bank import ExpertBank
from ..config.checks import is_integer
from ..errors import ConfigError
from ..model import M3DT, Routing

Experts = Literal["none", "mixture"] | Routing | int
"""Which experts act: none (the backbone alone), all of them weighed by the router, the heaviest of them, or a single one."""
Precision = Literal["float32", "bfloat16", "auto"]
RtgMode = Literal["rewards", "constant"]
ROUTED_MASS = 0.99
"""Share of the router's weight, from `benchmarks/results/2026-11-25-routing-study.md`."""


def default_experts(bank: ExpertBank) -> Experts:
    """What a bank's agent uses unless told otherwise.

    Where stage 3 concentrated the router, the experts that carry ROUTED_MASS: in the routing study they score as all do.
    """
    return Routing(mass=ROUTED_MASS) if bank.acts_with == "routed" else bank.default_experts


def checked_experts(experts: Experts, model: M3DT, bank: ExpertBank | None) -> Experts:
    """`experts`, if they can act: "none" always can, one expert if it is trained, "mixture" if there is a router.

    bank: where the model comes from; it knows what is trained. Of a model without a bank, everything it has counts as trained.

    Raises:
        ConfigError: experts that cannot act; the message names those that can.
    """
    mixes = bool(model.router_tensors()) if bank is None else bank.default_experts == "mixture"
    single = range(model.config.n_experts) if bank is None else bank.finished_experts
    valid: list[Experts] = ["none", *(["mixture"] if mixes else []), *single]  # type: ignore[list-item]
    routes = mixes and model.config.n_experts > 0  # a `Routing` chooses among experts inside the model's blocks
    if isinstance(experts, Routing):
        if routes:
            return experts
    elif isinstance(experts, str) or is_integer(experts):
        experts = experts if isinstance(experts, str) else int(experts)  # NumPy's integers too
        if experts in valid:
            return experts
    shown = ", ".join([*map(repr, valid), *(["a Routing"] if routes else [])])
    raise ConfigError(f"experts must be one of {shown} for this {'model' if bank is None else 'bank'}; got {experts!r}")


def checked_precision(precision: Precision) -> Precision:
    """`precision` itself.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(precision, str) and precision in get_args(Precision):
        return precision
    raise ConfigError(f"precision must be 'float32', 'bfloat16' or 'auto'; got {precision!r}")
