"""The methods that are compared, by name.

    trivial.py          random, zero, behavior: nothing is trained
    backbones.py        prompt-dt, prompt-bc
    wide.py             prompt-dt-wide: M3DT's parameters in one feed-forward layer per block
    mtdt.py             mtdt: a task embedding instead of a prompt
    harmo.py            harmo-dt, harmo-dt-published: a mask over the weights per task (task_masks.py)
    m3dt.py             m3dt-random, m3dt-gradient, m3dt-published-residual, m3dt-oracle: the three stages
    one_bank.py         bank-mixture, bank-routed, bank-oracle, bank-backbone: one training, several actors
    ablations.py        M3DT without its stages, groups or frozen experts; m3dt-top-k
    big_experts.py      m3dt-big-experts: each expert is a transformer
    sample_router.py    m3dt-sample-router: the router weighs experts per sample
    base.py, costs.py   what they share: ways to train, and counts of parameters and FLOP

All methods train on the package's one loop, with the same data, prompts and target returns.
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
        UnknownTaskError: no method has this name.
    """
    return lookup(dict(METHODS), name, "method")
