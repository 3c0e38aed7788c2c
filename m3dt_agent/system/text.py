"""Shows text of others as text: what a file, a server or a path says does not steer the terminal or turn words round."""

from __future__ import annotations


def visible(text: object, longest: int | None = None) -> str:
    r"""`str(text)` on one line, with every character that has no glyph of its own as an escape, such as `\x1b` or `\u202e`.

    These are control characters, bidirectional and zero-width ones, halves of surrogate pairs and all spaces but the common
    one. longest: characters of `text` to show; an ellipsis stands for the rest.
    """
    whole = str(text)
    shown = whole if longest is None else whole[:longest]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return escaped if len(shown) == len(whole) else escaped + "…"


def visible_lines(text: object) -> str:
    """`visible` of every line of a text that may have several, such as a message with a traceback in it."""
    return "\n".join(visible(line) for line in str(text).split("\n"))
