"""Edits of JSON texts, at any place, with values that no serializer would write: NaN, duplicate keys, nesting without end.

    {"do": "set", "at": [2, 0], "raw": "1e999"}      the value reached by taking the third member, then its first
    {"do": "name", "at": …, "raw": "\\"..\\""}       another key for it
    {"do": "twin", "at": …, "raw": …}                the same key again, with another value
    {"do": "drop", "at": …}                          without it
    {"do": "copy", "at": …, "from": […]}             what stands elsewhere in the document
    {"do": "inner", "at": …, "edits": […]}           edits of a JSON document that stands there as a text

`raw` is JSON text, or {"repeat": [left, n, right]} for left * n + right * n. Places that an earlier edit
removed are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any


class Members(list[list[Any]]):
    """An object as a list of [key, value], so that keys may repeat."""


class Raw(str):
    """A text to be written as it is."""

    __slots__ = ()


def expand(raw: Any) -> str:
    """The text that `raw` stands for."""
    if isinstance(raw, str):
        return raw
    left, times, right = raw["repeat"]
    return str(left * times + right * times)


def parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: Members([key, value] for key, value in pairs))


def render(node: Any) -> str:
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Members):
        return (
            "{" + ", ".join(f"{key if isinstance(key, Raw) else json.dumps(key)}: {render(value)}" for key, value in node) + "}"
        )
    if isinstance(node, list):
        return "[" + ", ".join(map(render, node)) + "]"
    return json.dumps(node)


def places(text: str) -> list[list[int]]:
    """Every place in a document; the document itself is []."""

    def below(node: Any, at: list[int]) -> Iterator[list[int]]:
        yield at
        if isinstance(node, list):
            for i, member in enumerate(node):
                yield from below(member[1] if isinstance(node, Members) else member, [*at, i])

    return list(below(parse(text), []))


def inner_texts(text: str) -> list[tuple[list[int], str]]:
    """The documents that stand in a document as texts, with their places."""
    document = parse(text)
    found = [(at, _find(document, at)) for at in places(text)]
    return [(at, value) for at, value in found if isinstance(value, str) and value.startswith("{")]


def edit_json(text: str, edits: Sequence[dict[str, Any]]) -> str:
    document = parse(text)
    for edit in edits:
        document = _edited(document, edit)
    return render(document)


def _edited(document: Any, edit: dict[str, Any]) -> Any:
    if not edit["at"]:
        return Raw(expand(edit["raw"])) if "raw" in edit else document
    holder, index = _find(document, edit["at"][:-1]), edit["at"][-1]
    if not isinstance(holder, list) or index >= len(holder):
        return document
    do, is_object = edit["do"], isinstance(holder, Members)
    if do == "inner":
        text = holder[index][1] if is_object else holder[index]
        if not isinstance(text, str) or isinstance(text, Raw):
            return document
        edit = {**edit, "raw": json.dumps(edit_json(text, edit["edits"]))}
    if do == "drop":
        del holder[index]
    elif do in ("name", "twin") and is_object:
        if do == "name":
            holder[index][0] = Raw(expand(edit["raw"]))
        else:
            holder.append([holder[index][0], Raw(expand(edit["raw"]))])
    else:
        value = _find(document, edit["from"]) if do == "copy" else Raw(expand(edit["raw"]))
        value = parse(render(value)) if do == "copy" else value  # a copy: a document that holds itself has no end
        if is_object:
            holder[index][1] = value
        else:
            holder[index] = value
    return document


def _find(node: Any, at: Sequence[int]) -> Any:
    for index in at:
        if not isinstance(node, list) or index >= len(node):
            return None
        node = node[index][1] if isinstance(node, Members) else node[index]
    return node
