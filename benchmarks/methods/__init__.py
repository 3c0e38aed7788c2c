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
    networks.py         any network in the place of M3DT's, for methods from elsewhere
    installed.py        methods that installed packages bring

All methods train on the package's one loop, with the same data, prompts and target returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3dt_agent.errors import ConfigError
from m3dt_agent.tasks import lookup

from . import ablations, backbones, big_experts, harmo, installed, m3dt, mtdt, one_bank, sample_router, trivial, wide
from .base import Method, Outcome, Work
from .networks import NetworkMethod

__all__ = ["METHODS", "Method", "NetworkMethod", "Outcome", "Work", "added_settings", "method"]

METHODS: Mapping[str, Method] = {
    name: found
    for family in (trivial, backbones, wide, mtdt, harmo, m3dt, one_bank, ablations, big_experts, sample_router)
    for name, found in family.METHODS.items()
}
"""The benchmark's own."""


def method(name: str, package: str | None = None) -> Method:
    """The method called `name`: the benchmark's own, or that of an installed package.

    package: what it must come from, as cells say it (`added_settings`); None: anything.

    Raises:
        UnknownTaskError: no method has this name.
        ConfigError: it comes from another package or version; or as `installed.installed`.
    """
    found = installed.installed(name, METHODS)
    if package is not None and (found is None or found.package != package):
        here = "not installed here" if found is None else f"that of {found.package} here"
        raise ConfigError(f"the method {name!r} of {package} is to be run, and it is {here}; install that package and version")
    return found.method if found is not None else METHODS[_known(name)]


def added_settings(name: str) -> dict[str, Any]:
    """What the cells of an installed package's method have as settings besides the baselines'; nothing for our own methods.

    They name the package and its version: another version is another cell.

    Raises:
        UnknownTaskError, ConfigError: as `method`.
    """
    found = installed.installed(name, METHODS)
    if found is not None:
        return {**found.settings, "package": found.package}
    _known(name)
    return {}


def _known(name: str) -> str:
    lookup(dict.fromkeys((*METHODS, *installed.names())), name, "method")
    return name
