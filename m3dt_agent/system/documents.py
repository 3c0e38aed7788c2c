"""Reads JSON documents that others wrote: the one place where such text becomes Python values.

    path, text or bytes ─► at most max_bytes ─► UTF-8 ─► JSON ─► plain values ─► the shape that the caller asks for

No document decides how much memory is taken, hangs the reader, or passes as something else: a path must lead to a regular file,
brackets are at most `MAX_DEPTH` deep, no key comes twice, no number is infinite or longer than 64 bits, and text is Unicode.
Whatever is wrong is the caller's own kind of `M3DTError`, which names the document and the place in it, such as
`bank.json is damaged or foreign: model.n_layers must be an integer; got '6'`.

A shape is a type: bool, int, float, str, None, Any, a Literal, a union, list[T], tuple[T, ...], dict[str, T], or a dataclass of
these. Values keep their spelling, so that a document that is written again keeps its hash: an integer where a float is expected
stays an integer. The checks are our own: what pydantic would save in lines it costs in time to import (0.05 s), and it knows
neither keys that come twice nor depth.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from ..errors import M3DTError, PathError
from .disk import open_regular

MAX_BYTES = 4 << 20
"""The largest document, unless the caller says otherwise. A bank.json of 160 tasks and 48 experts has 0.03 MB, the records of
160 datasets have 0.1 MB; a document takes up to some 25 times its size in memory."""
MAX_DEPTH = 32
"""The deepest nesting; ours are at most 6 deep."""
_SCALARS = (bool, int, str)
_INTEGERS = (-(2**63), 2**64 - 1)
_TYPES: dict[type, dict[str, Any]] = {}
T = TypeVar("T")


Place = tuple[Any, str | int] | None
"""Where in a document: the place of the container, and the key or index in it. It becomes text only if something is wrong."""


class _WrongError(Exception):
    """What is wrong with a document, and where in it."""

    def __init__(self, message: str, place: Place = None) -> None:
        super().__init__(f"{_written(place) or 'it'} {message}")


@overload
def read_document(
    source: Path | str | bytes, shape: type[T], error: type[M3DTError], *, name: object = None, max_bytes: int = MAX_BYTES
) -> T: ...
@overload
def read_document(
    source: Path | str | bytes, shape: Any, error: type[M3DTError], *, name: object = None, max_bytes: int = MAX_BYTES
) -> Any: ...
def read_document(
    source: Path | str | bytes, shape: Any, error: type[M3DTError], *, name: object = None, max_bytes: int = MAX_BYTES
) -> Any:
    """Reads the JSON document `source` and checks that it has `shape`.

    Args:
        source: a path, or the document's text as str or UTF-8 bytes.
        error: the error to raise. name: what errors call the document; None: its path.

    Raises:
        error: the file is missing, not a regular one or unreadable, or the document is too large, damaged or of another shape.
    """
    where = name if name is not None else source if isinstance(source, Path) else "the JSON document"
    if isinstance(source, Path):
        try:
            with open_regular(source) as file:
                source = file.read(max_bytes + 1)
        except PathError as problem:
            raise error(str(problem)) from problem
    try:
        return _shaped(_plain(_parsed(source, max_bytes)), shape, None)
    except _WrongError as problem:
        raise error(f"{where} is damaged or foreign: {problem}") from None


def checked_shape(value: object, shape: Any, error: type[M3DTError], *, name: object) -> Any:
    """Checks that a value that came from JSON has `shape`, and returns it in this shape. name: what errors call its document.

    Raises:
        error: it has not.
    """
    try:
        return _shaped(value, shape, None)
    except _WrongError as problem:
        raise error(f"{name} is damaged or foreign: {problem}") from None


def shape_problem(value: object, shape: Any, name: str) -> str:
    """What is wrong with a value that should have `shape`, such as "steps must be an integer; got '6'"; "" if nothing is."""
    try:
        _shaped(value, shape, (None, name))
    except _WrongError as problem:
        return str(problem)
    return ""


# -- text to values ------------------------------------------------------------------------------------------------------------


def parsed_json(text: str | bytes, error: type[M3DTError], *, name: object, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text, for callers that check every value of it themselves: depth, text and numbers are not limited.

    Raises:
        error: it is too large, or not JSON, or has a key twice.
    """
    try:
        return _parsed(text, max_bytes)
    except _WrongError as problem:
        raise error(f"{name} is damaged or foreign: {problem}") from None


def _parsed(text: str | bytes, max_bytes: int) -> Any:
    if len(text) > max_bytes:
        raise _WrongError(f"has more than {max_bytes:,} bytes, the most that is read")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _WrongError(f"is not UTF-8 text: {error}") from None
    except RecursionError:
        raise _WrongError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # also an integer of more than 4,300 digits
        raise _WrongError(f"is not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _WrongError(f"has the key {_shown(next(key for key in keys if keys.count(key) > 1))} twice in one object")
    return found


def _refuse_constant(text: str) -> None:
    raise _WrongError(f"holds {text}, which is not a number in JSON")


def _plain(value: Any, place: Place = None, depth: int = 0) -> Any:
    """`value`, if its nesting, text and numbers are within the limits."""
    kind = type(value)
    if kind is dict or kind is list:
        if depth == MAX_DEPTH:
            raise _WrongError(f"is nested deeper than {MAX_DEPTH} levels")
        for key, one in value.items() if kind is dict else enumerate(value):
            if type(key) is str and not key.isascii():
                _require_unicode(key, place)
            _plain(one, (place, key), depth + 1)
    elif kind is str:
        if not value.isascii():
            _require_unicode(value, place)
    elif kind is float:
        if not math.isfinite(value):
            raise _WrongError("is a number too large for 64 bits", place)
    elif kind is int and not _INTEGERS[0] <= value <= _INTEGERS[1]:
        raise _WrongError("is an integer of more than 64 bits", place)
    return value


def _require_unicode(text: str, place: Place) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _WrongError(f"holds {_shown(text)}, half of a surrogate pair", place) from None


# -- values to shapes ----------------------------------------------------------------------------------------------------------


def _shaped(value: Any, shape: Any, place: Place) -> Any:
    """`value` in this shape: objects become dataclasses, arrays tuples where the shape says so."""
    if shape is Any or (shape in _SCALARS and type(value) is shape):
        return value
    origin, inner = get_origin(shape), get_args(shape)
    if dataclasses.is_dataclass(shape):
        return _record(value, shape, place)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _one_of(value, shape, inner, place)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _shaped(one, inner[1], (place, key)) for key, one in value.items()}
    if origin in (list, Sequence, tuple) and isinstance(value, list):
        return _items(value, origin, inner, place)
    if origin is Literal and any(type(one) is type(value) and one == value for one in inner):
        return value
    if shape is float and type(value) in (int, float):
        return value
    if (shape is None or shape is types.NoneType) and value is None:
        return value
    if isinstance(shape, type) and type(value) is shape:
        return value
    raise _WrongError(f"must be {_described(shape)}; got {_shown(value)}", place)


def _record(value: Any, shape: type, place: Place) -> Any:
    if not isinstance(value, dict):
        raise _WrongError(f"must be {_described(shape)}; got {_shown(value)}", place)
    known = {one.name: one for one in dataclasses.fields(shape) if one.init}
    if unknown := sorted(set(value) - set(known)):
        raise _WrongError(f"has no field {_listed(unknown)}; there are {', '.join(known)}", place)
    needed = {
        name for name, one in known.items() if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(value)):
        raise _WrongError(f"lacks {', '.join(missing)}", place)
    hints = field_types(shape)
    fields = {name: _shaped(one, hints[name], (place, name)) for name, one in value.items()}
    try:
        return shape(**fields)
    except M3DTError as error:  # the record refuses its fields
        raise _WrongError(f"is wrong: {error}", place) from error


def field_types(record: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name; looked up once."""
    if record not in _TYPES:
        _TYPES[record] = get_type_hints(record)
    return _TYPES[record]


def _one_of(value: Any, shape: Any, choices: Iterable[Any], place: Place) -> Any:
    """The value in the first of the shapes that it has. If all but one are None, the problem is told as that one's."""
    problem: _WrongError | None = None
    for one in choices:
        try:
            return _shaped(value, one, place)
        except _WrongError as found:
            problem = found if problem is None or one is not types.NoneType else problem
    several = [one for one in choices if one is not types.NoneType][1:]
    inside = isinstance(value, (dict, list)) and not several
    raise problem if inside and problem else _WrongError(f"must be {_described(shape)}; got {_shown(value)}", place)


def _items(value: list[Any], origin: Any, inner: tuple[Any, ...], place: Place) -> Any:
    fixed = origin is tuple and inner[-1] is not Ellipsis
    if fixed and len(inner) != len(value):
        raise _WrongError(f"must have {len(inner)} items; got {len(value)}", place)
    shapes = inner if fixed else [inner[0]] * len(value)
    found = [_shaped(one, each, (place, i)) for i, (one, each) in enumerate(zip(value, shapes, strict=True))]
    return tuple(found) if origin is tuple else found


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", types.NoneType: "null", None: "null"}


def _described(shape: Any) -> str:
    origin = get_origin(shape)
    if shape in _NAMES:
        return _NAMES[shape]
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, get_args(shape))))
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(one) for one in get_args(shape))
    if origin in (list, Sequence, tuple):
        return "a list"
    return "an object"


def _written(place: Place) -> str:
    """A place as text, such as `files['a/b'].bytes`."""
    text = ""
    while place is not None:
        place, key = place
        plain = isinstance(key, str) and key.isidentifier() and len(key) < 60
        text = f".{key}{text}" if plain else f"[{_shown(key)}]{text}"
    return text.removeprefix(".")


def _shown(value: object) -> str:
    """The value for a message: short, and control characters made visible."""
    return reprlib.repr(value)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(map(_shown, keys[:5])) + (", …" if len(keys) > 5 else "")
