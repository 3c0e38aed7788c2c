"""Reads a page of `m3dt view` back, and text that would run in one if it were not escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from m3dt_agent.view.page import plotly_bundle

HOSTILE = '</script><img src=x onerror="document.title=1">&lt;b&amp;'
HOSTILE_NAME = "<img src=x onerror=document.title=1>"
"""As a file name, which cannot hold a slash."""


class ReadPage(HTMLParser):
    """A page: tags with their attributes, rows of text by table, the text outside of scripts, and the data of its script.

    Plotly's bundle is left out: reading its five million characters would take most of the time.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text, self.scripts = "", list[str]()
        self._open: list[str] = []
        self._table = ""
        self.feed(text.replace(plotly_bundle(), "", 1))
        assert self._open == []
        self.data: Any = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table = dict(attrs)["id"] or ""
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "link", "img", "input", "path"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" not in self._open:
            self.text += data
            if {"td", "th"} & set(self._open):
                self.tables[self._table][-1][-1] += data

    def column(self, table: str, name: str) -> dict[str, str]:
        """First cell → the cell of this column."""
        header, *rows = self.tables[table]
        return {row[0]: row[header.index(name)] for row in rows}


def harmless(page: ReadPage) -> bool:
    """Whether no text became a tag or a script: of both there are those of the page itself."""
    own = {"html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "p", "dl", "dt", "dd", "div", "label", "input"}
    own |= {"output", "table", "thead", "tbody", "tr", "th", "td", "button", "svg", "path", "section", "figure", "figcaption"}
    own |= {"img", "noscript", "script"}
    names = {tag for tag, _ in page.tags}
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    sources = [attributes.get("src") or "data:" for tag, attributes in page.tags if tag == "img"]
    return names <= own and not handlers and len(page.scripts) == 3 and all(one.startswith("data:image/") for one in sources)


def policy_of(page_text: str) -> str:
    """The content security policy of a page."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page_text)
    assert found is not None
    return found[1]
