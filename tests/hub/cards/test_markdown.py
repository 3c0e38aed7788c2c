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
        ("- a list", r"\- a list"),
        ("1. a list", r"1\. a list"),
        ("--- a rule", r"\--- a rule"),
        ("-0.5", "-0.5"),
        ("3.14 of 10", "3.14 of 10"),
        ("www.e_e", r"www\.e\_e"),
    ],
)
def test_escape(text: object, markdown: str) -> None:
    assert escape(text) == markdown
