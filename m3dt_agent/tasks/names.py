"""Finding a value by its name, with an error that helps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from ..errors import UnknownTaskError

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Returns `table[name]`.

    Raises:
        UnknownTaskError: there is none; the message names the closest keys.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        close = difflib.get_close_matches(str(name), table, n=3)
        valid = f"did you mean {', '.join(close)}?" if close else f"valid: {', '.join([*list(table)[:12], '…'][: len(table)])}"
        raise UnknownTaskError(f"unknown {what} {name!r}; {valid}") from None
