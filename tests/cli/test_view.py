"""`m3dt view`: the page and what is said of it; it opens in a browser on a terminal only."""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "router.csv").write_text("step,expert,loss\n10,,0.5\n")
    return tmp_path / "run"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    return pages


def test_the_result_alone_is_on_stdout(training: Path, tmp_path: Path, run: Run, opened: list[str]) -> None:
    page = tmp_path / "page.html"
    code, out, _ = run("view", training, "--to", page, "--json")
    made = json.loads(out)
    assert (code, made["path"], made["kind"], made["n_bytes"]) == (0, str(page), "run", page.stat().st_size)
    assert opened == []  # there is no terminal


@pytest.mark.parametrize(("options", "times"), [((), 1), (("--no-open",), 0)])
def test_on_a_terminal_it_opens(
    training: Path,
    tmp_path: Path,
    run: Run,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    times: int,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    page = tmp_path / "page.html"
    assert run("view", training, "--to", page, *options)[0] == 0
    assert opened == [page.as_uri()] * times


def test_what_cannot_be_shown_is_one_line(tmp_path: Path, run: Run, opened: list[str]) -> None:
    code, out, err = run("view", tmp_path, "--to", tmp_path / "page.html")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is nothing that a page can show" in err
    assert (opened, (tmp_path / "page.html").exists()) == ([], False)
