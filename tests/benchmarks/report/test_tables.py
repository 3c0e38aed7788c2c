"""Markdown, CSV and LaTeX of a report hold the same rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

from benchmark_runs import PLANS

from benchmarks.report.comparison import build_report
from benchmarks.report.tables import columns, csv_table


def test_markdown_csv_and_latex_hold_the_same_rows(written: tuple[Path, Path]) -> None:
    name = "table-1-four-0-mixture-smoke"
    text = (written[1] / "tables" / f"{name}.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["m3dt-gradient", "prompt-dt", "ours|<b>&_$5"]
    assert [float(row["mean"]) for row in rows] == [85.0, 70.0, 65.0]
    latex = (written[1] / "tables" / f"{name}.tex").read_text()
    assert r"ours\textbar{}\textless{}b\textgreater{}\&\_\$5 & 65.0 {[}52.0, 78.0{]}* &" in latex
    widths = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}
    assert widths == {len(columns(build_report([written[0]], PLANS).tables[1])[0]) - 1}
    report = (written[1] / "report.md").read_text()
    assert r"| ours\|&lt;b&gt;&amp;\_\$5 | 65.0 \[52.0, 78.0\]\* |" in report
    for line in ("Smoke scale", "not evidence", "1 planned cell of this experiment not finished", "conditional on the trained"):
        assert line in report
    for figure in re.findall(r"\((figures/[^)]*)\)", report):
        assert (written[1] / figure).stat().st_size > 1_000
        assert (written[1] / figure).with_suffix(".svg").read_text().startswith("<?xml")


def test_no_spreadsheet_executes_a_cell(written: tuple[Path, Path]) -> None:
    table = build_report([written[0]], PLANS).tables[0]
    texts = ("=HYPERLINK(1)", "+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "plain", "a=b", "1")
    shown = ("'=HYPERLINK(1)", "'+1", "'-2+3", "'@SUM(1)", r"\t=1", r"\r=1", r"\n=1", "plain", "a=b", "1")
    for text, wanted in zip(texts, shown, strict=True):
        row = dataclasses.replace(table.rows[0], method=text, label=text)
        (read,) = csv.DictReader(io.StringIO(csv_table(dataclasses.replace(table, rows=(row,))), newline=""))
        assert read["method"] == read["row"] == wanted
        original = next(csv.DictReader(io.StringIO(csv_table(dataclasses.replace(table, rows=(table.rows[0],))), newline="")))
        numbers = original.keys() - {"method", "row", "paper", "paper_source"}
        assert {name: read[name] for name in numbers} == {name: original[name] for name in numbers}


def test_negative_numbers_stay_numbers(written: tuple[Path, Path]) -> None:
    table = build_report([written[0]], PLANS).tables[0]
    row = dataclasses.replace(table.rows[0], gain=-2.5)
    (read,) = csv.DictReader(io.StringIO(csv_table(dataclasses.replace(table, rows=(row,)))))
    assert float(read["last_quarter"]) == -2.5
