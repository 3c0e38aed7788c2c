"""Writes a whole report as one HTML page that contains its pictures and videos, has no script and fetches nothing.

    for each experiment and task set: notes, the named contrast, methods, contrasts, figures, scores per task
    at the end: the videos in the runs' `videos/` folders

A content security policy forbids loading anything from outside the page. Text from files is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from m3dt_agent.hub.cards.markdown import count
from m3dt_agent.view.page import html_document

from .records import Contents, Table
from .tables import (
    CONFLICT_TITLE,
    Columns,
    columns,
    conflict_columns,
    contrast_columns,
    overview_columns,
    paper_line,
    sentence,
    task_columns,
)

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 100rem; padding: 0 1rem }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
th { vertical-align: bottom; white-space: normal } th:first-child, td:first-child { text-align: left }
tr:hover { background: #f4f8fb } .wide { overflow-x: auto; margin: 1rem 0 }
.error { background: #fbe3dc; border-left: 4px solid #d55e00; padding: .5rem 1rem }
.note { background: #f4f4f4; border-left: 4px solid #999; padding: .5rem 1rem }
.claim { background: #e3eff7; border-left: 4px solid #0072b2; padding: .5rem 1rem; font-weight: 600 }
.figures { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } img, video { max-width: 100% }
.figures img { width: 36rem }
"""
_VIDEOS = {".gif": "image/gif", ".webp": "image/webp", ".mp4": "video/mp4"}


def page(contents: Contents, runs: Sequence[Path], folder: Path) -> str:
    """The page's HTML. runs: folders with videos. folder: where the figures are."""
    parts = [_links(contents), *(_paragraph(line, "note") for line in [contents.also_here] if line)]
    for name, overview in contents.overviews.items():
        parts += [f'<h2 id="{name}">{html.escape(overview.title)}</h2>', _paragraph(overview.note, "note")]
        parts += [_table(overview_columns(overview)), _figures(contents.figures[name], name, folder)]
    parts += [_section(name, table, contents.figures[name], folder) for name, table in contents.tables.items()]
    opening = ["<h1>Benchmark report</h1>", "<p>Scores are normalized, 0 to 100; every task has the same weight.</p>"]
    body = "\n".join([*opening, *parts, _videos(runs)])
    return html_document("Benchmark report", body, policy=_POLICY, style=_STYLE)


def _links(contents: Contents) -> str:
    titles = {name: overview.title for name, overview in contents.overviews.items()}
    titles |= {name: table.title for name, table in contents.tables.items()}
    links = (f'<li><a href="#{name}">{html.escape(title)}</a></li>' for name, title in titles.items())
    return f"<ul>{''.join(links)}</ul>"


def _section(name: str, table: Table, figures: Sequence[str], folder: Path) -> str:
    """A table with its notes and figures. name: the table's file name, which is safe as an anchor."""
    parts = [f'<h2 id="{name}">{html.escape(table.title)}</h2>', f"<p>{count(len(table.tasks), 'task')}.</p>"]
    parts += [_paragraph(note, "error" if note.startswith("ERROR") else "note") for note in table.notes]
    parts += [_paragraph(sentence(contrast), "claim") for contrast in table.contrasts if contrast.named]
    parts.append(_table(columns(table)))
    parts += [_paragraph(line, "note") for line in [paper_line(table)] if line]
    if table.contrasts:
        parts += ["<h3>Contrasts</h3>", _table(contrast_columns(table))]
    if conflict_columns(table)[1]:
        parts += [f"<h3>{CONFLICT_TITLE}</h3>", _table(conflict_columns(table))]
    parts += ["<h3>Figures</h3>", _figures(figures, name, folder)]
    return "\n".join([*parts, "<h3>Scores per task</h3>", _table(task_columns(table))])


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def _table(found: Columns) -> str:
    header, rows = found
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _figures(figures: Sequence[str], name: str, folder: Path) -> str:
    pictures = "".join(_figure(folder / f"{figure}.svg", figure.removeprefix(f"{name}-")) for figure in figures)
    return f'<div class="figures">{pictures}</div>'


def _figure(file: Path, what: str) -> str:
    return f'<figure><img alt="{html.escape(what)}" src="{_data(file, "image/svg+xml")}"></figure>'


def _data(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _videos(runs: Sequence[Path]) -> str:
    """All videos in the `videos/` folders of the runs and of their cells; empty if there are none."""
    found = sorted(file for run in runs for pattern in ("videos/*", "*/videos/*") for file in run.glob(pattern))
    shown = [_video(file, _VIDEOS[file.suffix]) for file in found if file.suffix in _VIDEOS]
    return "\n".join(["<h2>Videos</h2>", f'<div class="figures">{"".join(shown)}</div>']) if shown else ""


def _video(file: Path, kind: str) -> str:
    name = html.escape(file.stem)
    if kind.startswith("image"):
        return f'<figure><img alt="{name}" src="{_data(file, kind)}"><figcaption>{name}</figcaption></figure>'
    return f'<figure><video controls src="{_data(file, kind)}"></video><figcaption>{name}</figcaption></figure>'
