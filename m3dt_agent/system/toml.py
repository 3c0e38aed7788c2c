"""Reads and writes TOML files: tasks of one's own, the settings of a training run. The standard library only reads them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import M3DTError
from .disk import open_regular, user_path

MAX_BYTES = 4 << 20  # as of a JSON document


def read_toml(path: Path, error: type[M3DTError]) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        error: it is not TOML, or has more than `MAX_BYTES` bytes. PathError: it cannot be read.
    """
    path = user_path(path)
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise error(f"{path} has more than {MAX_BYTES:,} bytes, the most that is read")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as problem:  # of TOML and of UTF-8
        raise error(f"{path} is not a TOML file: {problem}") from problem


def toml_lines(values: Mapping[str, Any]) -> str:
    """`key = value` lines. Values: strings, numbers, booleans, and lists and mappings of these; a mapping is written inline."""
    return "".join(f"{toml_key(key)} = {_text(value)}\n" for key, value in values.items())


def toml_key(key: str) -> str:
    """A key as TOML writes it; `[key]` begins its table."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _string(key)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(key)} = {_text(one)}" for key, one in value.items()) + " }" if value else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_text, value)) + "]"
    return _string(value) if isinstance(value, str) else str(value).lower()  # of numbers and booleans; 1E5 and 1e5 are one


def _string(text: str) -> str:
    """A basic string in ASCII, which every terminal and file takes. Bytes of a path that are no text become U+FFFD."""
    return re.sub("[^\x20-\x7e]", lambda found: _escaped(ord(found[0])), json.dumps(text, ensure_ascii=False))


def _escaped(character: int) -> str:
    character = 0xFFFD if 0xD800 <= character < 0xE000 else character
    return f"\\u{character:04x}" if character < 0x10000 else f"\\U{character:08x}"
