"""Banks that come with the package, and what a user writes for a bank at hand.

    bank                 a folder
    builtin:mt160        m3dt_agent/assets/banks/mt160/, a part of the installation: read without a network, never written to

An id on the Hugging Face Hub, namespace/name, is for `hub.banks.pull_bank`, which takes these as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

from ..errors import BankError
from .expert_bank import ExpertBank

PREFIX = "builtin:"
FOLDER = Path(str(resources.files("m3dt_agent").joinpath("assets", "banks")))
"""Where they lie, one folder each; it need not exist."""


def builtin_banks() -> tuple[str, ...]:
    """The banks of this installation, as they are written: `builtin:NAME`."""
    return tuple(sorted(f"{PREFIX}{manifest.parent.name}" for manifest in FOLDER.glob("*/bank.json")))


def is_builtin(name: str | Path) -> bool:
    """Whether `name` means a bank that comes with the package, be it there or not; give a folder called so with its path."""
    return str(name).startswith(PREFIX)


def open_bank(
    name: str | Path, *, experts: Iterable[int] | None = None, check: Literal["contents", "sizes"] = "contents"
) -> ExpertBank:
    """The bank `name`, a folder or `builtin:NAME`, which is read-only. experts, check: as `ExpertBank.open` takes them.

    Raises:
        BankError: no such bank, with those that come with the package named; or a file is missing, damaged or foreign.
        ConfigError: experts that the bank does not have.
    """
    if not is_builtin(name):
        return ExpertBank.open(name, experts=experts, check=check)
    if str(name) not in (known := builtin_banks()):
        there = f"it comes with {', '.join(known)}" if known else "it comes with none; train a bank, or pull one from the Hub"
        raise BankError(f"there is no bank {str(name)!r} in this installation of m3dt-agent: {there}")
    return ExpertBank.open(FOLDER / str(name).removeprefix(PREFIX), experts=experts, read_only=True, check=check)


def folder_to_write(name: str | Path) -> Path:
    """`name` as the folder of a bank that is made or trained.

    Raises:
        BankError: it means a bank that comes with the package.
    """
    if is_builtin(name):
        raise BankError(f"{str(name)!r} comes with the package and stays as it is; write to a folder, or into a copy of it")
    return Path(name)
