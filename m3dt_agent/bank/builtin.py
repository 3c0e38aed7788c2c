"""Banks that come with the package, and how users name local banks.

    PATH            a folder
    builtin:mt160   m3dt_agent/assets/banks/mt160/: part of the installation, needs no network, is never changed

Ids on the Hugging Face Hub (namespace/name) are for `hub.banks.pull_bank`, which accepts these names too.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ..errors import BankError
from ..system.disk import user_path
from .expert_bank import ExpertBank
from .tensor_files import Check

PREFIX = "builtin:"
FOLDER = Path(str(resources.files("m3dt_agent").joinpath("assets", "banks")))
"""Holds one folder per bank; it need not exist."""


def builtin_banks() -> tuple[str, ...]:
    """The names of the banks of this installation: `builtin:NAME`."""
    return tuple(sorted(f"{PREFIX}{manifest.parent.name}" for manifest in FOLDER.glob("*/bank.json")))


def is_builtin(name: str | Path) -> bool:
    """Whether `name` means a bank that comes with the package, even if there is none of this name.

    A folder whose own name begins with "builtin:" can be given with its path, as in ./builtin:NAME.
    """
    return str(name).startswith(PREFIX)


def open_bank(name: str | Path, *, experts: Iterable[int] | None = None, check: Check = "contents") -> ExpertBank:
    """Opens the bank `name`: a folder, or `builtin:NAME`, which is read-only. experts, check: as in `ExpertBank.open`.

    Raises:
        BankError: there is no such bank, or a file is missing, damaged or foreign.
        ConfigError: experts that the bank does not have.
    """
    if not is_builtin(name):
        return ExpertBank.open(name, experts=experts, check=check)
    if str(name) not in (known := builtin_banks()):
        there = f"it comes with {', '.join(known)}" if known else "it comes with none; train a bank, or pull one from the Hub"
        raise BankError(f"there is no bank {str(name)!r} in this installation of m3dt-agent: {there}")
    return ExpertBank.open(FOLDER / str(name).removeprefix(PREFIX), experts=experts, read_only=True, check=check)


def folder_to_write(name: str | Path) -> Path:
    """`name` as a path, for a bank that is to be created or trained.

    Raises:
        BankError: `name` means a bank that comes with the package. PathError: it is no path that a folder can have.
    """
    if is_builtin(name):
        raise BankError(f"{str(name)!r} comes with the package and cannot be changed; name a folder, or train a copy of it")
    return user_path(name)
