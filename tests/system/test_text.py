"""Text of others on its way to a terminal."""

from __future__ import annotations

import pytest

from m3dt_agent.system.text import visible, visible_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é and 语", "plain text, é and 语"),
        ("\x1b]8;;http://x\x07link", "\\x1b]8;;http://x\\x07link"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("a\u202eb\u200bc", "a\\u202eb\\u200bc"),
        ("\ud800", "\\ud800"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        (7, "7"),
    ],
)
def test_nothing_steers_the_terminal(text: object, shown: str) -> None:
    assert visible(text) == shown
    assert visible(text).isprintable()


def test_a_long_text_is_cut() -> None:
    assert visible("x" * 500, longest=20) == "x" * 20 + "…"
    assert visible("\n" * 500, longest=2) == "\\n\\n…"


def test_lines_stay_lines() -> None:
    assert visible_lines("one\n\x1b[2Jtwo\r\n") == "one\n\\x1b[2Jtwo\\r\n"
