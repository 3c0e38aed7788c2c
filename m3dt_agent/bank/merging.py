"""Commits of several processes to one bank: what one has read and changed, on top of what others have committed meanwhile.

         seen (when this process opened the bank)
        ╱                                        ╲
mine (what it wants to write)          now (what is on disk)      ─► mine where only mine differs from seen, else now;
        ╲                                        ╱                    an error where both differ, and not alike
         what is written
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BankError, ConfigError
from .manifest import Manifest

Records = Mapping[str, Any]
_CHANGEABLE = ("groups", "grouping", "stages", "grown")


def require_same_bank(seen: Manifest, now: Manifest, path: Path) -> None:
    """Checks that the bank on disk is still the one that was opened: the same model, data settings, tasks and storage.

    It may have grown meanwhile.

    Raises:
        BankError: it is another one.
    """
    same = now.with_growths(now.grown[: len(seen.grown)])
    names = [growth.groups for growth in seen.grown], [growth.groups for growth in same.grown]
    fields = ("model", "data", "tasks", "specs", "storage")
    differ = [name for name in fields if getattr(seen, name) != getattr(same, name)] + ["growths"] * (names[0] != names[1])
    if differ:
        raise BankError(f"there is another bank at {path} than the one that was opened: its {', '.join(differ)} differ")


def merged_fields(seen: Manifest, now: Manifest, changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`changes`, which were made to `seen`, as changes to `now`. Records of stages are merged one by one.

    Raises:
        BankError: both changed the same field or stage, and not alike. ConfigError: banks have no such field.
    """
    if unknown := set(changes) - set(_CHANGEABLE):
        raise ConfigError(f"a bank has no field {', '.join(sorted(unknown))} that can change; it has {', '.join(_CHANGEABLE)}")
    fields = {name: mine for name, mine in changes.items() if name != "stages"}
    merged = {name: _merged(getattr(seen, name), getattr(now, name), mine, name, path) for name, mine in fields.items()}
    if "stages" in changes:
        merged["stages"] = _merged_stages(seen.stages, now.stages, changes["stages"], path)
    return merged


def _merged_stages(before: Records, theirs: Records, mine: Records, path: Path) -> dict[str, Any]:
    found = {
        stage: _merged(before.get(stage), theirs.get(stage), mine.get(stage), f"record of stage {stage!r}", path)
        for stage in {**before, **theirs, **mine}
    }
    return {stage: record for stage, record in found.items() if record is not None}


def _merged(before: Any, theirs: Any, mine: Any, what: str, path: Path) -> Any:
    if mine == before:
        return theirs
    if theirs not in (before, mine):
        raise BankError(f"another process has changed the {what} of bank {path} since it was opened here; open it again")
    return mine
