"""What the configs check on creation, and how they are made from plain dictionaries."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import ConfigError

C = TypeVar("C")


def stored(config: Any, added_later: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields as they are stored. Fields of `added_later` are left out where they have the value given there.

    So what is stored without such a field keeps its hash, and older versions read it.
    """
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if not (name in added_later and value == added_later[name])}


def require_types(config: Any) -> None:
    """Checks every field of a config against its annotation: int, float, bool, a `Literal`, weights by name, or None.

    NumPy's numbers become Python's. Python's own stay as they are, even an integer where a float is expected, so that a config
    is stored, and hashed, as it was given.

    Raises:
        ConfigError: a field is of another type, or not finite; the message says what is valid.
    """
    for name, annotation in _annotations(type(config)).items():  # type: ignore[arg-type]  # a class is hashable
        value = getattr(config, name)
        plain = _plain(value)
        valid = _problem(plain, annotation)
        require(not valid, config, name, valid)
        if plain is not value:
            object.__setattr__(config, name, plain)


def require_instance(name: str, value: object, kind: type | types.UnionType) -> None:
    """Checks that an argument is of a type. name: what the caller calls it.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, kind):
        valid = " or ".join("None" if one is types.NoneType else one.__name__ for one in get_args(kind) or (kind,))
        raise ConfigError(f"{name} must be of type {valid}; got {type(value).__name__}")


def is_integer(value: object) -> bool:
    """Whether `value` is an integer of Python or NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {one.name: hints[one.name] for one in dataclasses.fields(cls)}


def _plain(value: Any) -> Any:
    """`value` with NumPy's numbers replaced by Python's; the same object if there are none."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and any(isinstance(one, np.generic) for one in value.values()):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _problem(value: Any, annotation: Any) -> str:
    """What a value of this annotation must be, if `value` is none, else ""."""
    origin, of = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        problems = [_problem(value, one) for one in of]
        return "" if "" in problems else " or ".join(sorted(problems, key=lambda text: text != "None"))
    if annotation is int:
        return "" if is_integer(value) else "an integer"
    if annotation is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
        return "" if ok else "a finite number"
    if annotation is bool:
        return "" if isinstance(value, bool) else "True or False"
    if origin is Literal:
        return "" if isinstance(value, str) and value in of else f"one of {', '.join(map(repr, of))}"
    if annotation is type(None):
        return "" if value is None else "None"
    assert origin is Mapping, f"no check for {annotation}"
    ok = isinstance(value, Mapping) and all(isinstance(k, str) and is_integer(v) for k, v in value.items())
    return "" if ok else "a mapping from names to integers"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def require(ok: bool, config: object, name: str, valid: str) -> None:
    """Checks a field of a config. valid: what it must be, for the message.

    Raises:
        ConfigError: `ok` is False.
    """
    if not ok:
        raise ConfigError(f"{type(config).__name__}.{name} must be {valid}; got {getattr(config, name)!r}")


def require_positive(config: object, *names: str) -> None:
    """Checks that integer fields are at least 1, or None where `require_types` lets them be None.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 1, config, name, "an integer >= 1")


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
