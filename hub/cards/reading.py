"""Reads the scores back out of a model card that `model_card` wrote: the table under "Scores", and whose scores they are.

A card comes with a bank, so a stranger may have written it. Nothing of it is believed but numbers and names in their places;
whoever shows them says that the card says so.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m3dt_agent.errors import PathError
from m3dt_agent.system.disk import open_regular

CARD = "README.md"
_MOST_BYTES = 8 << 20  # of a card: 160 tasks have 0.08 MB
_HASH = re.compile(r"The policy is ([^\n]{1,200}?), with the bank whose content hash is `([0-9a-f]{64})`")
_FIRST = ("task", "domain", "episodes", "return", "score", "95% interval", "success")
_LAST = "published"


@dataclass(frozen=True, slots=True)
class CardScore:
    """One task's row. low, high: of the score's interval. success: a share, or None. others: policy → score."""

    episodes: int
    score: float
    low: float
    high: float
    success: float | None
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CardScores:
    """The scores of a card. policy: who acted. content_hash: of the bank that did."""

    policy: str
    content_hash: str
    tasks: Mapping[str, CardScore]


def read_card_scores(bank: Path) -> CardScores | None:
    """The scores in the card of the bank folder `bank`; None if there is no card, or none with scores that can be read."""
    try:
        with open_regular(bank / CARD) as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    except PathError:
        return None
    _, _, section = text.partition("\n## Scores\n")
    named = _HASH.search(section)
    rows = [_cells(line) for line in section.splitlines() if line.startswith("|")]
    header = next((i for i, row in enumerate(rows) if tuple(row[: len(_FIRST)]) == _FIRST and row[-1] == _LAST), None)
    if named is None or header is None:
        return None
    names = rows[header][len(_FIRST) : -1]
    tasks: dict[str, CardScore] = {}
    for row in rows[header + 2 :]:
        if len(row) != len(rows[header]) or row[0].startswith("**"):  # the means end the table
            break
        if (score := _score(row, names)) is not None:
            tasks[row[0]] = score
    return CardScores(_plain(named[1]), named[2], tasks) if tasks else None


def _cells(line: str) -> list[str]:
    return [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _plain(text: str) -> str:
    """The inverse of `markdown.escape`."""
    return html.unescape(re.sub(r"\\(.)", r"\1", text))


def _score(row: Sequence[str], names: Sequence[str]) -> CardScore | None:
    try:
        low, _, high = row[5].partition(" … ")
        success = None if row[6] == "-" else _number(row[6].removesuffix("%")) / 100
        others = {name: _number(cell) for name, cell in zip(names, row[len(_FIRST) : -1], strict=True) if cell != "-"}
        return CardScore(int(row[2]), _number(row[4]), _number(low), _number(high), success, others)
    except ValueError:
        return None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
