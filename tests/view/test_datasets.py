"""The page of datasets: its table, its panels, and the text of strangers in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import HOSTILE, HOSTILE_NAME, ReadPage, harmless

from m3dt_agent.errors import DatasetError, UnknownTaskError
from m3dt_agent.view.datasets import datasets_page


@pytest.fixture(scope="module")
def page(root: Path) -> ReadPage:
    return ReadPage(datasets_page(root, "root", (), None, progress=False).html())


def test_the_table_has_a_row_per_dataset(page: ReadPage) -> None:
    assert harmless(page)
    header, *rows = page.tables["datasets"]
    by_task = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_task) == ["reach", "cheetah-vel-25", HOSTILE_NAME]
    cheetah = by_task["cheetah-vel-25"]
    counted = [cheetah[name] for name in ("episodes", "steps", "return, min", "median", "max", "clipped", "length")]
    assert counted == ["3", "33", "-33.0", "-24.0", "-10.0", "8.1%", "10 to 12, 11"]
    assert cheetah["demonstrator"] == "expert 75%, random 25%"
    assert (by_task["reach"]["success"], by_task["reach"]["score"], cheetah["success"]) == ("67%", "66.7", "-")
    assert by_task[HOSTILE_NAME]["demonstrator"] == f"{HOSTILE} 100%"
    assert "not known here" in by_task[HOSTILE_NAME]["problems"]


def test_the_panels_hold_histograms_and_ranges(page: ReadPage) -> None:
    tasks = page.data["panels"]["tasks"]
    assert set(tasks) == {"reach", "cheetah-vel-25", HOSTILE_NAME}
    assert sum(tasks["cheetah-vel-25"]["returns"][0]["y"]) == 3
    spans, deviations = tasks["reach"]["actions"]
    assert len(spans["y"]) == 4
    assert spans["y"][0] + spans["error_y"]["array"][0] == pytest.approx(1.0, abs=1e-3)
    assert len(deviations["error_y"]["array"]) == 4
    assert len(tasks["reach"]["observations"][0]["y"]) == 39


def test_what_is_not_drawn_is_said(page: ReadPage) -> None:
    assert "Clips are of 0 of 3 datasets; --clips reach draws those of a task." in page.text


def test_sources_that_do_not_exist_and_clips_of_others_are_errors(root: Path) -> None:
    assert len(ReadPage(datasets_page(root, "root", (), "expert", progress=False).html()).tables["datasets"]) == 2
    with pytest.raises(DatasetError, match="no datasets of source 'novice'"):
        datasets_page(root, "root", (), "novice", progress=False)
    with pytest.raises(UnknownTaskError, match="clips of walker-run: there are no datasets"):
        datasets_page(root, "root", ("walker-run",), None, progress=False)
