"""Text in cards is shown as it is and never becomes markup."""

from __future__ import annotations

import pytest

from m3dt_agent.hub.cards.markdown import escape


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("walker-run", "walker-run"),
        (3.5, "3.5"),
        ("a|b", r"a\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a\n\n# b", r"a \# b"),
        ("https://e.example", r"https\://e.example"),
        ("www.e.example", r"www\.e.example"),
        ("`x`\u202e", r"\`x\`"),
    ],
)
def test_escape(text: object, markdown: str) -> None:
    assert escape(text) == markdown
