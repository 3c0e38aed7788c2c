"""Cells are read as they were written; damaged ones are refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import TASKS, cell, facts, score, write

from benchmarks.records import read_cell, read_run, write_cell
from m3dt_agent.errors import DatasetError


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    took = facts(curve=[(4_000, 0.5), (8_000, 0.25)])
    folder = write(tmp_path, cell("prompt-dt"), took, score(50), score(40))
    result = read_cell(folder)
    assert (result.cell, result.facts) == (cell("prompt-dt"), took)
    assert set(result.episodes) == {"0.75", "1.00"}
    assert result.final == result.episodes["1.00"]
    assert result.finished


def test_a_cell_without_facts_or_final_episodes_is_not_finished(tmp_path: Path) -> None:
    assert not read_cell(write(tmp_path, cell("prompt-dt"), None, score(50))).finished
    assert not read_cell(write_cell(tmp_path, cell("harmo-dt"), facts())).finished


def test_the_id_does_not_depend_on_the_experiment() -> None:
    assert cell("prompt-dt").id == cell("prompt-dt", experiment="other").id
    assert cell("prompt-dt").id != cell("prompt-dt", 1).id


def test_a_folder_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no benchmark cells"):
        read_run(tmp_path)


@pytest.mark.parametrize("fault", ["not every task", "twice", "not a task of the cell", "line 1"])
def test_episodes_that_do_not_fit_the_cell_are_refused(tmp_path: Path, fault: str) -> None:
    file = write(tmp_path, cell("prompt-dt"), facts(), score(50)) / "rows-1.00.jsonl"
    lines = file.read_text().splitlines()
    bad = {
        "not every task": lines[:-1],
        "twice": [*lines, lines[0]],
        "not a task of the cell": [lines[0].replace(TASKS[0], "reach")],
        "line 1": ["{}"],
    }
    file.write_text("\n".join(bad[fault]) + "\n")
    with pytest.raises(DatasetError, match=fault):
        read_run(tmp_path)


WRONG = {
    "{}": "its format is None",
    "{": "not JSON",
    '{"format": "m3dt-benchmark-cell", "format_version": 2}': "version 2",
    '{"format": "m3dt-benchmark-cell", "format_version": 1}': "it must be an object",
    '{"format": "m3dt-benchmark-cell", "format_version": 1, "cell": [], "facts": null}': "it must be an object",
    "[" * 100_000: "nested deeper",
    "[]": "must be an object",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:60])
def test_a_damaged_cell_is_refused(tmp_path: Path, text: str) -> None:
    (write(tmp_path, cell("prompt-dt"), facts(), score(50)) / "cell.json").write_text(text)
    with pytest.raises(DatasetError, match=rf"cell\.json is damaged or foreign: .*{WRONG[text]}"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("cell", {"tasks": ["walker-fly"]}, "unknown task 'walker-fly'"),
        ("cell", {"tasks": "reach"}, "tasks must be a list"),
        ("cell", {"training_seed": "0"}, "training_seed must be an integer"),
        ("facts", {"curve": [[1, "x"]]}, r"curve\[0\]\[1\] must be a number"),
        ("facts", {"seconds": None}, "seconds must be a number"),
        ("facts", {"more": 1}, "has no field 'more'"),
    ],
)
def test_a_cell_with_values_of_another_type_is_refused(tmp_path: Path, part: str, change: dict[str, Any], told: str) -> None:
    file = write(tmp_path, cell("prompt-dt"), facts(), score(50)) / "cell.json"
    document = json.loads(file.read_text())
    document[part].update(change)
    file.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=told):
        read_run(tmp_path)
