"""The methods that are compared, by name; each file says only how its methods differ.

    trivial.py     random, zero, behavior
    backbones.py   prompt-dt, prompt-bc
    wide.py        prompt-dt-wide: the M3DT's parameters in one feed-forward layer per block
    mtdt.py        mtdt: a task embedding instead of a prompt
    harmo.py       harmo-dt, harmo-dt-published: a mask over the weights per task
    m3dt.py        the three stages: m3dt-random, m3dt-gradient, and what differs in their groups, config or who acts
    one_bank.py    bank-mixture, bank-routed, bank-oracle, bank-backbone: one training, several actors
    ablations.py   m3dt without its stages, groups or frozen experts; m3dt-top-k
    big_experts.py, sample_router.py   m3dt-big-experts, m3dt-sample-router: other models

All of them train on the package's one loop, on the same data, prompts and target returns.
"""

from __future__ import annotations

from collections.abc import Mapping

from m3dt_agent.tasks import lookup

from . import ablations, backbones, big_experts, harmo, m3dt, mtdt, one_bank, sample_router, trivial, wide
from .base import Method, Outcome, Work

__all__ = ["METHODS", "Method", "Outcome", "Work", "method"]

METHODS: Mapping[str, Method] = {
    name: found
    for family in (trivial, backbones, wide, mtdt, harmo, m3dt, one_bank, ablations, big_experts, sample_router)
    for name, found in family.METHODS.items()
}


def method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UnknownTaskError: there is none.
    """
    return lookup(dict(METHODS), name, "method")
