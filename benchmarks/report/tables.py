"""Writes tables as text: Markdown for people, CSV for programs, LaTeX for papers, and everything as one JSON document.

    columns(table)  ──►  header and cells as plain text  ──►  Markdown, LaTeX, HTML (page.py), each with its own escaping

The CSV has unformatted numbers, and a column for each end of an interval.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

from m3dt_agent import tasks as task_table
from m3dt_agent.hub.cards.markdown import count, escape
from m3dt_agent.hub.cards.markdown import table as markdown_table
from m3dt_agent.system.text import visible

from ..runs.gradient_conflict import MODULES
from .paper_numbers import best_baselines, paper_number
from .records import OWN_PART, PARTS, Contents, Contrast, Overview, Report, Row, Table
from .statistics import Estimate

DASH = "-"
CONFLICT_TITLE = "Gradient conflict between tasks by module, 0: all gradients the same, near 1: orthogonal."
Columns = tuple[list[str], list[list[str]]]
"""Header and lines of a table, as plain text."""
_FORMULAS = ("=", "+", "-", "@")
"""How a text begins that a spreadsheet executes; numbers are written as numbers."""
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"|": r"\textbar{}", "[": "{[}", "]": "{]}", "<": r"\textless{}", ">": r"\textgreater{}"}


def columns(table: Table) -> Columns:
    """The main table: methods, best first, with everything that is known of them."""
    parts = [*PARTS, *([OWN_PART] if any(OWN_PART in row.parts for row in table.rows) else [])]
    header = ["method", "mean score [95%]", "IQM [95%]", *parts, "success rate [Wilson 95%]", "paper", "parameters", "active"]
    header += ["windows", "training FLOP", "FLOP per action", "seeds", "episodes", "task ID", "last quarter"]
    return header, [_cells(row, table.task_set, parts) for row in ranked(table)]


def ranked(table: Table) -> list[Row]:
    """The rows, the highest mean first."""
    return sorted(table.rows, key=lambda row: (-row.mean.value, row.label))


def contrast_columns(table: Table) -> Columns:
    """The table of contrasts; those named before the run come first."""
    header = ["contrast", "named before", "difference [95%]", "p (Holm)", "P(first better) [95%]", "seeds", "verdict"]
    rows = []
    for contrast in table.contrasts:
        found, chance = contrast.difference, contrast.improvement
        difference = _interval(found.estimate, "+.2f")
        cells = [f"{contrast.a} against {contrast.b}", "yes" if contrast.named else "no", difference, f"{contrast.p_value:.2g}"]
        rows.append([*cells, _interval(chance, ".2f"), str(found.seeds), contrast.verdict])
    return header, rows


def conflict_columns(table: Table) -> Columns:
    """The table of gradient conflict by kind of module; without lines if none was measured."""
    header = ["method", *MODULES, "all"]
    rows = [row for row in ranked(table) if row.conflict]
    return header, [[row.label, *(_conflict(row.conflict.get(name)) for name in header[1:])] for row in rows]


def _conflict(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def task_columns(table: Table) -> Columns:
    """The table of tasks: the published single-task score and each method's score."""
    rows = ranked(table)
    header = ["task", "published single-task", *(row.label for row in rows)]
    lines = []
    for name in table.tasks:
        found = [row.by_task[name] for row in rows]
        scores = [f"{score.mean:.1f} [{score.low:.1f}, {score.high:.1f}]" for score in found]
        task = task_table.get(name)
        label = f"{name} (return)" if task.score == "return" else name
        lines.append([label, DASH if task.published_score is None else f"{task.published_score:.1f}", *scores])
    return header, lines


def overview_columns(overview: Overview) -> Columns:
    """The table of an overview: for each method and task set the mean, lowest and highest run, and the loss to the last set."""
    header = ["method", *overview.task_sets, "lost from first to last"]
    rows = []
    for label, found in overview.rows.items():
        cells = [
            DASH if score is None else f"{score.mean:.1f} ({score.low:.1f} to {score.high:.1f}; {score.runs})"
            for score in found
        ]
        rows.append([label, *cells, DASH if (lost := overview.lost(label)) is None else f"{lost:.1f}%"])
    return header, rows


def paper_line(table: Table) -> str | None:
    """A sentence on the paper's best baseline on the same tasks; None if its score is not known."""
    known = [f"{number.score:.2f} ({number.what}; {number.source})" for number in best_baselines(table.task_set)]
    return f"The paper's best baseline is not named here; its score: {' or '.join(known)}." if known else None


def sentence(contrast: Contrast) -> str:
    """A contrast in words."""
    found, chance = contrast.difference, contrast.improvement
    of = "conditional on the trained models" if found.estimate.conditional else "over training seeds"
    return (
        f"{contrast.a} against {contrast.b}: {contrast.verdict}. Mean score {found.estimate.value:+.2f} "
        f"[{found.estimate.low:+.2f}, {found.estimate.high:+.2f}], p = {contrast.p_value:.2g}, "
        f"P({contrast.a} > {contrast.b}) = {chance.value:.2f} [{chance.low:.2f}, {chance.high:.2f}]; "
        f"{count(found.seeds, 'paired training seed')}, {count(found.tasks, 'task')}, 95% intervals {of}."
    )


def markdown(contents: Contents) -> str:
    """The report as Markdown."""
    sections = ["# Benchmark report", "Scores are normalized, 0 to 100; every task has the same weight."]
    sections += [escape(line) for line in [contents.also_here] if line]
    for name, overview in contents.overviews.items():
        sections += [f"## {escape(overview.title)}", escape(overview.note), _markdown(overview_columns(overview))]
        sections += [_picture(figure) for figure in contents.figures[name]]
    for name, table in contents.tables.items():
        sections += [f"## {escape(table.title)}", f"{count(len(table.tasks), 'task')}."]
        sections += [f"**{escape(note)}**" if note.startswith("ERROR") else escape(note) for note in table.notes]
        sections += [escape(sentence(contrast)) for contrast in table.contrasts if contrast.named]
        sections.append(_markdown(columns(table)))
        sections += [escape(line) for line in [paper_line(table)] if line]
        if table.contrasts:
            sections.append(_markdown(contrast_columns(table)))
        if conflict_columns(table)[1]:
            sections += [CONFLICT_TITLE, _markdown(conflict_columns(table))]
        sections += [_picture(figure) for figure in contents.figures[name]]
    return "\n\n".join(sections) + "\n"


def latex_table(table: Table) -> str:
    """The main table as a LaTeX `tabular` for the package booktabs."""
    header, rows = columns(table)
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (header, *rows)]
    notes = [f"% {_one_line(line)}" for line in (table.title, *table.notes)]
    start = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*notes, *start, *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_table(table: Table) -> str:
    """The main table as CSV, with unformatted numbers and a column for each end of an interval.

    A text that a spreadsheet would take for a formula has an apostrophe before it, which spreadsheets do not show.
    """
    records = [{name: _no_formula(value) for name, value in _record(row, table).items()} for row in ranked(table)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def document(report: Report) -> dict[str, Any]:
    """The whole report as JSON: tables, contrasts, notes and overviews."""
    tables = []
    for table in report.tables:
        where = {key: getattr(table, key) for key in ("experiment", "task_set", "condition", "scale")}
        contrasts = [_contrast_record(contrast) for contrast in table.contrasts]
        rows = [_record(row, table) for row in ranked(table)]
        where["task_set_seeds"] = list(table.task_set_seeds)
        tables.append({**where, "tasks": list(table.tasks), "notes": list(table.notes), "rows": rows, "contrasts": contrasts})
    overviews = [dataclasses.asdict(overview) for overview in report.overviews]
    return {"format": "m3dt-benchmark-report", "format_version": 1, "tables": tables, "overviews": overviews}


def _cells(row: Row, task_set: str, parts: Sequence[str]) -> list[str]:
    rate = DASH if row.success is None else "{:.2f} [{:.2f}, {:.2f}]".format(row.success[0], *row.success[1])
    cells = [row.label, _interval(row.mean), _interval(row.iqm)]
    cells += [f"{row.parts[part].value:.1f}" if part in row.parts else DASH for part in parts]
    cells += [rate, str(paper_number(row.method, task_set) or DASH), _amount(row.parameters), _amount(row.active_parameters)]
    cells += [_amount(row.windows), _amount(row.training_flop), _amount(row.action_flop)]
    gain = DASH if row.gain is None else f"{row.gain:+.1f}"
    return [*cells, str(len(row.scores.seeds)), f"{row.episodes:,}", row.task_id, gain]


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    shown = visible(value)  # a tab or line end at the beginning is passed over by spreadsheets, and ends rows for some readers
    return f"'{shown}" if shown.startswith(_FORMULAS) else shown


def _interval(found: Estimate, form: str = ".1f") -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]{'*' * found.conditional}"


def _amount(value: float) -> str:
    """A whole number below a hundred thousand; otherwise three digits with k, M, G, T, P or E."""
    if value < 1e5:
        return f"{value:,.0f}"
    power = next(power for power in range(1, 7) if value < 1e3 ** (power + 1) or power == 6)
    return f"{value / 1e3**power:.3g}{'kMGTPE'[power - 1]}"


def _record(row: Row, table: Table) -> dict[str, Any]:
    """A row as a flat dict. Numbers are rounded, by far less than any interval is wide."""
    record: dict[str, Any] = {"method": row.method, "row": row.label}
    for name, found in (("mean", row.mean), ("iqm", row.iqm), *row.parts.items()):
        record |= {name: round(found.value, 4), f"{name}_low": round(found.low, 4), f"{name}_high": round(found.high, 4)}
    rate, (low, high) = row.success or (None, (None, None))
    record |= {"success_rate": rate, "success_low": low, "success_high": high}
    record = {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}
    number = paper_number(row.method, table.task_set)
    record |= {"paper": number and number.score, "paper_source": number and number.source}
    record |= {"conditional": row.mean.conditional, "seeds": len(row.scores.seeds), "episodes": row.episodes}
    for name in ("parameters", "active_parameters", "windows", "training_flop", "action_flop"):
        record[name] = round(getattr(row, name))
    return record | {"task_id": row.task_id, "last_quarter": None if row.gain is None else round(row.gain, 4)}


def _contrast_record(contrast: Contrast) -> dict[str, Any]:
    record: dict[str, Any] = {"a": contrast.a, "b": contrast.b, "named": contrast.named, "verdict": contrast.verdict}
    for name, found in (("difference", contrast.difference.estimate), ("improvement", contrast.improvement)):
        record |= {name: round(found.value, 4), f"{name}_low": round(found.low, 4), f"{name}_high": round(found.high, 4)}
    record |= {"p_holm": float(f"{contrast.p_value:.4g}"), "conditional": contrast.difference.estimate.conditional}
    return record | {"seeds": contrast.difference.seeds, "undertrained": contrast.undertrained}


def _markdown(found: Columns) -> str:
    header, rows = found
    return markdown_table(header, [[escape(cell) for cell in row] for row in rows])


def _picture(figure: str) -> str:
    return f"![{figure}](figures/{figure}.png)"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _latex(text: str) -> str:
    return re.sub(r"[&%$#_{}\\~^<>|[\]]", lambda found: _LATEX[found[0]], _one_line(text))
