"""The template: text is text, no script runs but ours, nothing can be fetched, and the script reads what was given."""

from __future__ import annotations

import base64
import hashlib
import math
import sys

import pytest
from pages import HOSTILE, ReadPage, harmless, policy_of

from m3dt_agent.errors import MissingDependencyError
from m3dt_agent.view.page import Cell, Column, Page, label, number, percent, plotly_bundle, require_plotly, shorts


@pytest.fixture(scope="module")
def text() -> str:
    page = Page(HOSTILE, HOSTILE)
    page.heading(HOSTILE)
    page.note(HOSTILE)
    page.facts({HOSTILE: HOSTILE})
    columns = (Column(HOSTILE, HOSTILE, "words"), Column("n"), Column("bars"))
    first, second = [Cell(HOSTILE), number(3), Cell("", 2.0, (0.0, 0.5))], [Cell("b"), number(None), percent(0.256, 1)]
    page.table("things", columns, [(HOSTILE, first), ("b", second)], pick=True)
    page.plot("one", {"data": [{"x": [1], "name": label(HOSTILE)}], "layout": {"title": {"text": HOSTILE}}})
    page.panels({"bars": {}}, {HOSTILE: {"bars": []}}, {HOSTILE: [(b"film", HOSTILE), (None, HOSTILE)]})
    return page.html()


def test_text_of_strangers_stays_text(text: str) -> None:
    page = ReadPage(text)
    assert harmless(page)
    assert page.text.count(HOSTILE) == 11  # title, heading, lead, section, note, fact twice, header, cell, two captions
    assert page.tables["things"][1:] == [[HOSTILE, "3.0", ""], ["b", "-", "25.6%"]]
    assert page.data["panels"]["tasks"] == {HOSTILE: {"bars": []}}
    assert page.data["plots"]["one"]["layout"]["title"]["text"] == HOSTILE


def test_labels_hold_no_tags_of_plotlys_own() -> None:
    assert label("<a href='x'>&b</a>") == "&lt;a href='x'&gt;&amp;b&lt;/a&gt;"
    assert label("a\u202eb\n") == r"a\u202eb\n"


def test_no_script_runs_but_those_named_by_their_hash(text: str) -> None:
    policy = policy_of(text)
    scripts = [plotly_bundle(), ReadPage(text).scripts[2]]
    assert all(f"<script>{script}</script>" in text for script in scripts)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert allowed.split() == ["script-src", *(f"'sha256-{one}'" for one in hashes)]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    sources = [attributes.get(name) or "" for _, attributes in ReadPage(text).tags for name in ("src", "href")]
    assert all(source.startswith("data:") for source in sources if source)


def test_cells_sort_by_their_numbers(text: str) -> None:
    keys = [attributes.get("data-sort") for tag, attributes in ReadPage(text).tags if tag == "td"]
    assert keys == [None, "3.0", "2.0", None, None, "0.256"]


def test_numbers_of_figures_are_short_and_finite() -> None:
    assert shorts([1234.5678, 1e-7 / 3, math.nan, math.inf]) == [1235.0, 3.333e-08, None, None]


def test_without_plotly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'm3dt-agent\[view\]'"):
        require_plotly()
