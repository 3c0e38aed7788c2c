"""Scores read back from a card are those that were written, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3dt_agent.bank import builtin
from m3dt_agent.hub.cards.reading import CARD, read_card_scores
from m3dt_agent.tasks import TASKS


def test_the_card_of_the_package_is_read_whole() -> None:
    bank = builtin.open_bank("builtin:mt160", check="sizes")
    found = read_card_scores(bank.path)
    assert found is not None
    assert (found.policy, found.content_hash) == ("bank-mixture", bank.content_hash)
    assert list(found.tasks) == [task.name for task in TASKS]
    basketball = found.tasks["basketball"]
    assert (basketball.score, basketball.low, basketball.high, basketball.success, basketball.episodes) == (
        92.0,
        75.0,
        97.8,
        0.92,
        25,
    )
    assert basketball.others["expert"] == 100.0
    assert sum(task.score for task in found.tasks.values()) / 160 == pytest.approx(87.8, abs=0.05)


TABLE = """
## Scores

The policy is a\\_b, with the bank whose content hash is `{hash}`.

| task | domain | episodes | return | score | 95% interval | success | other\\|one | published |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| reach | metaworld | 25 | 1.0 | {score} | 1.0 … 2.0 | 4% | 3.0 | - |
| **mean** |  | 25 |  | **78.5** | 77.9 … 79.1 | 82% | 75.9 | 84.3 |
| after | metaworld | 25 | 1.0 | 2.0 | 1.0 … 2.0 | - | 3.0 | - |
"""


def read(folder: Path, text: str | bytes) -> object:
    (folder / CARD).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_card_scores(folder)


def test_names_are_unescaped_and_the_means_end_the_table(tmp_path: Path) -> None:
    read(tmp_path, TABLE.format(hash="a" * 64, score="1.5"))
    found = read_card_scores(tmp_path)
    assert found is not None
    assert (found.policy, list(found.tasks)) == ("a_b", ["reach"])
    assert (found.tasks["reach"].score, dict(found.tasks["reach"].others)) == (1.5, {"other|one": 3.0})


@pytest.mark.parametrize(
    "text",
    [
        *("", "# A card\n", b"\xff\x00", TABLE.format(hash="no hash", score="1.5")),
        *(TABLE.format(hash="a" * 64, score=score) for score in ("nan", "inf", "= return", "<b>")),
    ],
)
def test_a_card_without_scores_has_none(tmp_path: Path, text: str | bytes) -> None:
    assert read(tmp_path, text) is None
    assert read_card_scores(tmp_path / "missing") is None
