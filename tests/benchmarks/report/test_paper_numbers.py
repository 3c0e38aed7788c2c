"""The paper's numbers stand beside its 160 tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmark_runs import cell, facts, only_table, write

from benchmarks.report.tables import columns, paper_line
from m3dt_agent import tasks as task_table


def test_the_papers_numbers_stand_beside_all_160_tasks_and_no_others(tmp_path: Path) -> None:
    names = tuple(task.name for task in task_table.TASKS)
    values = {name: [100.0 if task_table.get(name).domain == "metaworld" else 50.0] for name in names}
    for method in ("m3dt-gradient", "m3dt-no-grouping", "m3dt-end-to-end", "prompt-dt"):
        write(tmp_path, cell(method, tasks=names, task_set="mt160"), facts(), values)
    table = only_table(tmp_path)
    header, rows = columns(table)
    paper = {row[0]: row[header.index("paper")] for row in rows}
    assert paper == {
        "m3dt-gradient": "78.21",
        "m3dt-no-grouping": "67.34",
        "m3dt-end-to-end": "71.90 (summary)",
        "prompt-dt": "-",
    }
    line = paper_line(table)
    assert line is not None
    assert "71.65 (best baseline; summary) or 72.75 (best baseline, from the text's +7.5%; text)" in line
    other = dataclasses.replace(table, task_set="mt160[13]")
    assert paper_line(other) is None
    assert {row[header.index("paper")] for row in columns(other)[1]} == {"-"}
