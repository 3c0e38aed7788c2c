"""One self-contained HTML page: text, tables that sort and filter, figures, and panels that show one task at a time.

    Page ── heading, note, facts, table, plot, picture, panels ──► parts of the body, and data for the script
      └── html() ──► head with a policy, body, plotly's bundle, the data as JSON, assets/view.js

Nothing can be fetched and no script runs but the two of this package: a content security policy in the page names their hashes.
So a stranger's text cannot run even where escaping would fail. All text is escaped here, in one place for HTML (`_text`) and in
one for plotly (`label`), whose labels are a small HTML of their own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.util
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import MissingDependencyError
from ..system.text import visible

Figure = dict[str, Any]
"""A figure as plotly takes it: {"data": [trace, …], "layout": {…}}."""
ASSETS = Path(__file__).parents[1] / "assets"
LONGEST = 2_000
"""Characters of one text; a longer one, which no name or message of ours is, ends in an ellipsis."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, as in all figures of the package."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table. text: what it shows. key: what its column is sorted by, if not the text; None is sorted last.
    bars: heights from 0 to 1 of a small histogram, shown instead of the text."""

    text: str
    key: float | None = None
    bars: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. name: its header. help: what the header's tooltip says. kind: whether it holds numbers, words, or
    sentences, which are shown on several lines."""

    name: str
    help: str = ""
    kind: Literal["number", "words", "text"] = "number"


def number(value: float | None, digits: int = 1) -> Cell:
    """A number as a cell; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return Cell("-")
    return Cell(f"{value:,.{digits}f}", float(value))


def percent(value: float | None, digits: int = 0) -> Cell:
    """A share as a cell, such as 24%."""
    return Cell("-") if value is None else Cell(f"{100 * value:.{digits}f}%", float(value))


def label(text: object) -> str:
    """A stranger's text for a figure: plotly reads tags such as <b> and <a> in its labels."""
    return html.escape(visible(text, longest=80), quote=False)


def short(value: float) -> float | None:
    """A number with four digits, as pages hold them; None, which figures leave out, for NaN and infinities."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def shorts(values: Iterable[float]) -> list[float | None]:
    """`short` of each."""
    return [short(float(value)) for value in values]


class Page:
    """A page under construction: each method adds a part below those that are there."""

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.notes = title, list[str]()
        self._parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(lead)}</p>"]
        self._plots: dict[str, Figure] = {}
        self._panels: dict[str, Any] = {"layouts": {}, "tasks": {}}

    def heading(self, text: str) -> None:
        """A heading of a section."""
        self._parts.append(f"<h2>{_text(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{_text(text)}</p>")

    def note(self, text: str) -> None:
        """A remark that must be seen, such as what is missing here and how to make it."""
        self.notes.append(text)
        self._parts.append(f'<p class="note">{_text(text)}</p>')

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values, one pair a line."""
        rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
        self._parts.append(f"<dl>{rows}</dl>")

    def table(self, name: str, columns: Sequence[Column], rows: Sequence[tuple[str, Sequence[Cell]]], *, pick: bool) -> None:
        """A table that sorts by a click on a header and has a field to filter its rows.

        name: unique in the page, letters only. rows: a key and the cells. pick: whether a click on a row shows the panel of
        its key (see `panels`).
        """
        head = "".join(_header(column) for column in columns)
        body = "\n".join(_row(key, cells, columns, pick) for key, cells in rows)
        search = f'<label>filter <input type="search" data-table="{name}" placeholder="words that a row must have"></label>'
        found = f'<output data-count="{name}">{len(rows)} of {len(rows)}</output>'
        self._parts.append(
            f'<div class="tools">{search} {found}</div>\n<div class="wide"><table id="{name}">\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )

    def plot(self, name: str, figure: Figure, height: int = 340) -> None:
        """A figure. name: unique in the page, letters only. height: in pixels."""
        self._plots[name] = figure
        self._parts.append(f'<div class="plot" data-plot="{name}" style="height:{height}px"></div>')

    def panels(
        self,
        layouts: Mapping[str, dict[str, Any]],
        traces: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
        clips: Mapping[str, Sequence[tuple[bytes | None, str]]],
    ) -> None:
        """A place that shows what is known of one task, the one whose row was clicked last; first of all the first.

        Args:
            layouts: figure → its layout, the same for all tasks.
            traces: task → figure → traces. Figures that a task has not are hidden.
            clips: task → (an animated WebP or None, words below it).
        """
        self._panels = {"layouts": dict(layouts), "tasks": {task: dict(of) for task, of in traces.items()}}
        figures = "".join(f'<div class="plot" data-slot="{name}" style="height:300px"></div>' for name in layouts)
        films = "".join(_clip(task, *one) for task, of in clips.items() for one in of)
        self._parts.append(
            f'<section id="panel"><h2 id="chosen"></h2><div class="figures">{films}</div>\n'
            f'<div class="grid">{figures}</div></section>'
        )

    def html(self) -> str:
        """The whole page.

        Raises:
            MissingDependencyError: plotly is not installed.
        """
        scripts = [plotly_bundle(), (ASSETS / "view.js").read_text()]
        data = {"plots": self._plots, "panels": self._panels}
        body = "\n".join(self._parts)
        scripted = (
            '<noscript><p class="note">Figures, sorting and filtering need JavaScript.</p></noscript>\n'
            f'<script type="application/json" id="data">{_json(data)}</script>\n'
            f"<script>{scripts[0]}</script>\n<script>{scripts[1]}</script>"
        )
        return html_document(
            self.title, f"{body}\n{scripted}", policy=_policy(scripts), style=(ASSETS / "view.css").read_text()
        )


def html_document(title: str, body: str, *, policy: str, style: str) -> str:
    """A whole page of this project: its head, and a body of HTML. policy: what the browser may load and run."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def require_plotly() -> None:
    """Checks that figures can be made, before anything is read for them.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise MissingDependencyError("pages need plotly: pip install 'm3dt-agent[view]'")


@functools.cache
def plotly_bundle() -> str:
    """plotly.js, as the package plotly carries it.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    require_plotly()
    from plotly.offline import get_plotlyjs

    bundle: str = get_plotlyjs()
    return bundle


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(data: Any) -> str:
    """JSON that no HTML reader takes for a tag, whatever is in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _text(value: object) -> str:
    return html.escape(visible(value, longest=LONGEST))


def _header(column: Column) -> str:
    tip = f' title="{_text(column.help)}"' if column.help else ""
    return f'<th scope="col" class="{column.kind}"><button type="button"{tip}>{_text(column.name)}</button></th>'


def _row(key: str, cells: Sequence[Cell], columns: Sequence[Column], pick: bool) -> str:
    shown = "".join(
        _cell(cell, column, first=i == 0 and pick) for i, (cell, column) in enumerate(zip(cells, columns, strict=True))
    )
    return f'<tr data-key="{html.escape(key)}">{shown}</tr>'


def _cell(cell: Cell, column: Column, *, first: bool) -> str:
    order = "" if cell.key is None else f' data-sort="{cell.key!r}"'
    content = _bars(cell.bars) if cell.bars else _text(cell.text)
    if first:
        content = f'<button type="button">{content}</button>'
    return f'<td class="{column.kind}"{order}>{content}</td>'


def _bars(heights: Sequence[float]) -> str:
    """A histogram as small as a word."""
    path = "".join(f"M{4 * i + 2} 20v{-20 * height:.1f}" for i, height in enumerate(heights) if height)
    return f'<svg class="bars" viewBox="0 0 {4 * len(heights)} 20" role="img" aria-label="histogram"><path d="{path}"/></svg>'


def _clip(task: str, film: bytes | None, words: str) -> str:
    owner, caption = html.escape(task), f"<figcaption>{_text(words)}</figcaption>"
    if film is None:
        return f'<figure data-of="{owner}">{caption}</figure>'
    source = f"data:image/webp;base64,{base64.b64encode(film).decode()}"
    return f'<figure data-of="{owner}"><img alt="{_text(words)}" src="{source}">{caption}</figure>'
