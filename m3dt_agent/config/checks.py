"""What the configs check on creation, and how they are made from plain dictionaries."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_args

from ..errors import ConfigError

C = TypeVar("C")


def require(ok: bool, config: object, name: str, valid: str) -> None:
    """Checks a field of a config. valid: what it must be, for the message.

    Raises:
        ConfigError: `ok` is False.
    """
    if not ok:
        raise ConfigError(f"{type(config).__name__}.{name} must be {valid}; got {getattr(config, name)!r}")


def require_positive(config: object, *names: str, or_none: bool = False) -> None:
    """Checks that fields are integers of at least 1.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(ok or (or_none and value is None), config, name, "None or an integer >= 1" if or_none else "an integer >= 1")


def require_choice(config: object, name: str, literal: object) -> None:
    """Checks that a field is one of the values of a `Literal`.

    Raises:
        ConfigError: it is not.
    """
    choices = get_args(literal)
    require(getattr(config, name) in choices, config, name, f"one of {', '.join(map(repr, choices))}")


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """A config from a plain dict, as stored in a bank.

    Raises:
        ConfigError: unknown keys, missing keys, or values that do not validate; the message names them.
    """
    known = {one.name for one in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None
