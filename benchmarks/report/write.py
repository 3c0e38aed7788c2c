"""Writes a report on the folders of benchmark runs: tables, contrasts, figures and one HTML page.

    <out>/report.md  index.html  report.json
          tables/<table>.csv  .tex        one table per experiment, task set with its seed, data condition and scale
          figures/<table>-<figure>.png  .svg

A table has a row per method, or per setting of it if the experiment varies some. Its contrasts are the one named before the
run, and the first method of that one against every other row (or every row against the second, if the first was not run),
corrected by Holm within the table. `comparison` says what limits the claims of a contrast.

The same files give the same report: it contains no date, path or machine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3dt_agent.errors import ConfigError
from m3dt_agent.system.disk import write_file

from .comparison import build_report, contrast_of, pairs
from .figures import write_figures, write_overview_figures
from .page import page
from .records import Contents, Overview, Plan, Report, Table
from .tables import csv_table, document, latex_table, markdown, sentence


def write_report(runs: Sequence[Path], out: Path, plans: Mapping[tuple[str, str], Plan] | None = None) -> Report:
    """Writes the report on the cells of some run folders into `out`, and returns it.

    Args:
        plans: (experiment, scale) → what was planned. None: the plans of `experiments`.

    Raises:
        DatasetError: there are no cells, or one is damaged.
        ConfigError: no cell is finished.
        MissingDependencyError: matplotlib is not installed.
    """
    report = build_report(runs, plans)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    contents = contents_of(report, runs, out / "figures")
    for name, table in contents.tables.items():
        write_file(out / "tables" / f"{name}.csv", csv_table(table).encode())
        write_file(out / "tables" / f"{name}.tex", latex_table(table).encode())
    write_file(out / "report.md", markdown(contents).encode())
    write_file(out / "report.json", (json.dumps(document(report), indent=1, allow_nan=False) + "\n").encode())
    write_file(out / "index.html", page(contents, runs, out / "figures").encode())
    return report


def compare(runs: Sequence[Path], a: str, b: str, plans: Mapping[tuple[str, str], Plan] | None = None) -> str:
    """Compares method (or row) `a` with `b`: a paragraph for every table that has both. The verdict may be "undecided".

    Raises:
        ConfigError: no table has both; the message names the rows there are.
        DatasetError: as `write_report`.
    """
    report = build_report(runs, plans)
    answers = []
    for table in report.tables:
        for first, second in pairs(table.rows, a, b):
            contrast = contrast_of(first, second, named=False, smoke=table.scale == "smoke")
            answers.append("\n".join([table.title, sentence(contrast), *table.notes]))
    if not answers:
        known = sorted({row.label for table in report.tables for row in table.rows})
        raise ConfigError(f"no table has both {a!r} and {b!r}; there are {', '.join(known)}")
    return "\n\n".join(answers)


def contents_of(report: Report, runs: Sequence[Path], figures: Path) -> Contents:
    """Gives every table and overview a file name, and draws their figures into the folder `figures`."""
    tables: dict[str, Table] = {}
    for table in report.tables:
        seeds = "-".join(map(str, table.task_set_seeds))
        tables[_name((table.experiment, table.task_set, seeds, table.condition, table.scale), tables)] = table
    overviews: dict[str, Overview] = {}
    for overview in report.overviews:
        overviews[_name((overview.experiment, "all", overview.condition, overview.scale), {**tables, **overviews})] = overview
    drawn = {name: write_figures(table, runs, figures, name) for name, table in tables.items()}
    drawn |= {name: write_overview_figures(overview, figures, name) for name, overview in overviews.items()}
    return Contents(tables, overviews, drawn, report.also)


def _name(parts: Sequence[str], taken: Mapping[str, object]) -> str:
    """A file name without suffix that is not taken, of characters that are safe in file names, HTML anchors and LaTeX."""
    stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in "-".join(parts)).strip("-")
    numbered = (f"{stem}-{copy}" for copy in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if name not in taken)
