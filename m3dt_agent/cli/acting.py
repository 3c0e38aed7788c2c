"""Who acts in `m3dt eval` and `m3dt play`: from what was typed to a bank's agent or a behavior policy.

WHO                                          ─► find_policy ─► a bank, or a behavior policy's level
--experts, --routing-mass, --precision, …    ─► Acting      ─► how a bank's agent acts
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BankError, ConfigError

if TYPE_CHECKING:
    from ..agent import Experts, M3DTAgent, Precision
    from ..bank import ExpertBank


@dataclass(frozen=True, slots=True)
class Acting:
    """How a bank's agent acts. experts: None leaves the choice to the bank."""

    experts: Experts | None
    precision: Precision
    device: str

    @classmethod
    def from_options(
        cls, experts: str | None, routing_mass: float | None, max_experts: int | None, precision: Precision, device: str
    ) -> Acting:
        """What the options of these names ask for.

        Raises:
            ConfigError: --routing-mass or --max-experts without the mixture, or out of range.
        """
        return cls(_chosen_experts(experts, routing_mass, max_experts), precision, device)

    def load(self, bank: ExpertBank) -> M3DTAgent:
        """The bank's agent, which acts so.

        Raises:
            ConfigError: experts that the bank does not have. StageError: they are not trained yet.
        """
        from ..agent import M3DTAgent

        agent = M3DTAgent.load(bank.path, device=self.device, precision=self.precision)
        if self.experts is not None:
            agent.experts = self.experts
        return agent


def find_policy(who: str) -> ExpertBank | str:
    """The bank called `who`, or `who` itself if it is a behavior policy's level.

    Raises:
        BankError: it is neither, or the bank is damaged.
    """
    from ..bank.builtin import is_builtin, open_bank
    from ..data.behavior import SNAPSHOT_LEVELS, parse_level

    if is_builtin(who) or Path(who).is_dir():
        return open_bank(who, check="sizes")
    if parse_level(who)[0] in ("random", "zero", "scripted", *SNAPSHOT_LEVELS):
        return who
    raise BankError(
        f"{who!r} is neither a bank (a folder, or builtin:NAME) nor a behavior policy (random, zero, novice, medium, expert)"
    )


def _chosen_experts(experts: str | None, routing_mass: float | None, max_experts: int | None) -> Experts | None:
    if routing_mass is not None or max_experts is not None:
        from ..model import Routing

        if experts not in (None, "mixture"):
            raise ConfigError(f"--routing-mass and --max-experts go with --experts mixture; got --experts {experts}")
        return Routing(1.0 if routing_mass is None else routing_mass, max_experts)
    return int(experts) if experts is not None and experts.isdigit() else experts  # type: ignore[return-value]
