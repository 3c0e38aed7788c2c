"""Each kind of page in a real browser: nothing on the console, nothing fetched, tables sort and filter, figures are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from pages import HOSTILE, HOSTILE_NAME
from row_examples import row

from m3dt_agent.bank import ExpertBank
from m3dt_agent.scores.rows import write_rows
from m3dt_agent.training.logs import COLUMNS
from m3dt_agent.view import Request, write_page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt install chromium")]

COLUMN = "[...document.querySelectorAll('#{table} tbody tr')].filter(r => !r.hidden).map(r => r.cells[{cell}].textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def _clean(browser: Browser) -> Iterator[None]:
    browser.console.clear()
    browser.requests.clear()
    yield
    assert browser.console == []
    assert [url for url in browser.requests if not url.startswith("file:")] == []
    assert browser.evaluate("document.title") != "1"  # what the hostile texts would set
    assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def column(browser: Browser, table: str, cell: int) -> list[str]:
    found: list[str] = browser.evaluate(COLUMN.format(table=table, cell=cell))
    return found


def click(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector({selector!r}).click()")


def test_a_page_of_datasets(browser: Browser, root: Path, tmp_path: Path) -> None:
    made = write_page(root, tmp_path / "page.html", Request(clips=(), progress=False))
    browser.open(made.path)
    assert column(browser, "datasets", 0) == ["reach", "cheetah-vel-25", HOSTILE_NAME]
    for expected in (["cheetah-vel-25", "reach", HOSTILE_NAME], [HOSTILE_NAME, "reach", "cheetah-vel-25"]):
        click(browser, "#datasets th:nth-child(8) button")  # the median return, up and down
        assert column(browser, "datasets", 0) == expected
    click(browser, "#datasets th:nth-child(12) button")  # success; what has none comes last, up or down
    assert column(browser, "datasets", 11)[0] == "67%"
    filtering = "f = document.querySelector('input[data-table=datasets]'); f.value = 'EXPERT metaworld'; "
    browser.evaluate(filtering + "f.dispatchEvent(new Event('input'))")
    assert column(browser, "datasets", 0) == ["reach"]
    assert browser.evaluate("document.querySelector('output').value") == "1 of 3"
    browser.evaluate("f.value = ''; f.dispatchEvent(new Event('input'))")
    for task in ("cheetah-vel-25", HOSTILE_NAME):
        browser.evaluate(f"[...document.querySelectorAll('td button')].find(b => b.textContent === {task!r}).click()")
        assert browser.evaluate("document.getElementById('chosen').textContent") == task
        assert browser.evaluate("document.querySelectorAll('#panel .plot .main-svg').length") >= 3
    for width in (1300, 500):
        browser.resize(width, 900)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width  # only tables scroll sideways
    click(browser, "#datasets th:nth-child(1) button")


def test_a_page_of_a_bank_with_the_curves_of_its_training(browser: Browser, bank: ExpertBank, tmp_path: Path) -> None:
    folder = bank.copy_to(tmp_path / HOSTILE_NAME).path
    (folder / "logs").mkdir()
    for stage in ("backbone", "router"):
        lines = [",".join(COLUMNS), *(f"{step},,{1 / step},0.001,0.5,,,1" for step in (10, 20, 30))]
        (folder / "logs" / f"{stage}.csv").write_text("\n".join(lines) + "\n")
    own = [row("walker-run", seed, 500.0, policy="m3dt-mixture", bank_hash=bank.content_hash) for seed in range(3)]
    rows = write_rows(tmp_path / "rows.jsonl", [*own, *(row("walker-run", seed, 700.0, policy=HOSTILE) for seed in range(3))])
    made = write_page(folder, tmp_path / "page.html", Request(rows=(rows,), progress=False))
    browser.open(made.path)
    assert column(browser, "tasks", 0) == ["reach", "walker-run"]
    click(browser, "#tasks th:nth-child(1) button")
    click(browser, "#tasks th:nth-child(1) button")
    assert column(browser, "tasks", 0) == ["walker-run", "reach"]
    for name in ("scores", "experts", "loss", "gradnorm"):
        assert browser.evaluate(f"document.querySelectorAll('[data-plot={name}] .main-svg').length") >= 2, name
    assert browser.evaluate("document.querySelector('[data-plot=scores] .legend').textContent").count("<img src=x") == 1
    assert browser.evaluate("document.querySelectorAll('[data-plot=experts] .updatemenu-header').length") == 2


def test_a_page_of_a_benchmark_run(browser: Browser, tmp_path: Path) -> None:
    facts = {"parameters": 10, "windows": 64, "curve": [[32, 0.5], [64, 0.25]]}
    for name, method in (("aaa", HOSTILE), ("bbb", "m3dt")):
        (tmp_path / "run" / name).mkdir(parents=True)
        document = {"cell": {"experiment": "methods", "method": method, "training_seed": 0, "tasks": []}, "facts": facts}
        (tmp_path / "run" / name / "cell.json").write_text(json.dumps(document))
    made = write_page(tmp_path / "run", tmp_path / "page.html")
    browser.open(made.path, 500)
    assert column(browser, "cells", 2) == [HOSTILE, "m3dt"]
    assert browser.evaluate("document.querySelectorAll('[data-plot=cellcurves] .trace').length") == 2
    assert browser.evaluate("document.documentElement.scrollWidth") <= 500


def test_what_would_be_fetched_or_run_is_seen(browser: Browser, root: Path, tmp_path: Path) -> None:
    """The policy of the page stops it, and the console says so: an empty console is a proof."""
    made = write_page(root, tmp_path / "page.html", Request(clips=(), progress=False))
    evil = '<img src="http://127.0.0.1:9/a.png"><img src="data:," onerror="document.title=1"><script>document.title=1</script>'
    made.path.write_text(made.path.read_text().replace("</h1>", f"</h1>{evil}", 1))
    browser.open(made.path)
    assert sum("Content Security Policy" in line for line in browser.console) >= 3
    browser.console.clear()
    browser.requests.clear()
