"""Methods that installed packages bring: entry points of the group `m3dt.methods`.

    [project.entry-points."m3dt.methods"]
    mlp-bc = "mlp_bc:METHOD"              the method's name = "module:object", the object is a `base.Method`

A package's code is imported when its method is asked for, not before: a broken one does not stop the others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from m3dt_agent.errors import ConfigError

from ..records import FINAL, TaskIdUse
from .base import Method

ENTRY_POINTS = "m3dt.methods"
_WANTED = (
    f"must name an object with `train(work, fraction)`, `task_id` ({', '.join(get_args(TaskIdUse))}) and `fractions` (rising "
    f'numbers as text, the last of them "{FINAL}")'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Installed:
    """A method of an installed package. package: its name and version. settings: the method's own."""

    method: Method
    package: str
    settings: Mapping[str, Any]


def names() -> list[str]:
    """The methods that installed packages have, also those that cannot be loaded."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def installed(name: str, taken: Collection[str]) -> Installed | None:
    """The method that an installed package has under this name; None if none has.

    taken: the names of the benchmark's own methods.

    Raises:
        ConfigError: the name is taken, or two packages have it; the package cannot be imported; what it names is no method.
    """
    points = list(entry_points(group=ENTRY_POINTS, name=name))
    if not points:
        return None
    whose = " and ".join(_owner(point) for point in points)
    if name in taken or len(points) > 1:
        also = "the benchmark has a method of that name" if name in taken else "only one of them may have it"
        raise ConfigError(f"the method {name!r} comes from {whose}, but {also}; rename it or uninstall it")
    where = f"the entry point {points[0].value!r} of {whose}"
    try:
        found = points[0].load()
    except Exception as error:  # whatever the code of that package raises
        raise ConfigError(f"{where} cannot be loaded: {error!r}") from error
    if not _is_method(found):
        raise ConfigError(f"{where} {_WANTED}; it names {found!r:.100}")
    return Installed(found, whose, _settings(found, where))


def _is_method(found: object) -> bool:
    fractions = getattr(found, "fractions", None)
    if isinstance(found, type) or not callable(getattr(found, "train", None)) or isinstance(fractions, str):
        return False
    try:
        numbers = [float(fraction) for fraction in fractions]  # type: ignore[union-attr]
        texts = all(isinstance(fraction, str) for fraction in fractions)  # type: ignore[union-attr]
        rises = all(a < b for a, b in zip([0.0, *numbers], numbers, strict=False))
        return texts and rises and fractions[-1] == FINAL and found.task_id in get_args(TaskIdUse)  # type: ignore
    except (TypeError, ValueError, LookupError, AttributeError):
        return False


def _settings(found: Method, where: str) -> Mapping[str, Any]:
    settings = getattr(found, "settings", {})
    try:
        if isinstance(settings, Mapping) and json.loads(json.dumps(dict(settings), allow_nan=False)) == dict(settings):
            return settings
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{where}: `settings` must be a mapping that JSON can hold; got {settings!r:.100}")


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an installed package"
