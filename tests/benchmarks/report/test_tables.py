"""Markdown, CSV and LaTeX of a report hold the same rows."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from benchmark_runs import PLANS

from benchmarks.report.comparison import build_report
from benchmarks.report.tables import columns


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
