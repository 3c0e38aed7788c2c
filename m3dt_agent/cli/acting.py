"""From the options that say who acts to an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..agent import Experts, M3DTAgent, Precision
    from ..bank import ExpertBank


def chosen_experts(experts: str | None, routing_mass: float | None, max_experts: int | None) -> Experts | None:
    """What the options name; None: nothing.

    Raises:
        ConfigError: a routed choice of anything but the mixture, or one that makes no sense.
    """
    if routing_mass is not None or max_experts is not None:
        from ..model import Routing

        if experts not in (None, "mixture"):
            raise ConfigError(f"--routing-mass and --max-experts go with --experts mixture; got --experts {experts}")
        return Routing(1.0 if routing_mass is None else routing_mass, max_experts)
    return int(experts) if experts is not None and experts.isdigit() else experts  # type: ignore[return-value]


def load_agent(bank: ExpertBank, experts: Experts | None, device: str, precision: Precision) -> M3DTAgent:
    """The bank's agent, set to `experts` if any are named."""
    from ..agent import M3DTAgent

    agent = M3DTAgent.load(bank.path, device=device, precision=precision)
    if experts is not None:
        agent.experts = experts
    return agent
