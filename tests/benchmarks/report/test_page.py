"""The page holds everything, fetches nothing, and opens in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3dt_agent import tasks as task_table

CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Tags that are open, every tag with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_fetches_nothing(written: tuple[Path, Path]) -> None:
    page = Page((written[1] / "index.html").read_text())
    assert page.open == []
    assert not any(tag in ("script", "iframe", "object", "b") for tag, _ in page.tags)
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if attributes.get(name)]
    assert all(source and source.startswith(("data:", "#")) for source in sources)
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    figures = ["scores", "windows", "flop", "profiles", "curves"]
    assert pictures == [*figures, "experts-0", *figures, "walker & run", "walker-walk"]
    assert "ours|<b>&_$5" in page.text
    for wanted in (
        "claim not tested: undertrained",
        "published single-task",
        f"{task_table.get('walker-run').published_score:.1f}",
    ):
        assert wanted in page.text


def open_in_chromium(page: Path, profile: Path) -> tuple[Path, list[str]]:
    """A screenshot, and what the page wrote to the console."""
    assert CHROMIUM is not None
    shot = profile.with_suffix(".png")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", f"--screenshot={shot}", "--window-size=1300,3000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return shot, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_opens_in_a_browser_without_a_console_error(written: tuple[Path, Path], tmp_path: Path) -> None:
    shot, console = open_in_chromium(written[1] / "index.html", tmp_path / "profile")
    assert console == []
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    for colour in ((227, 239, 247), (0, 114, 178), (213, 94, 0)):  # the claim, and both methods in the figures
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) <= 2).sum() > 200, colour


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_page_that_fetched_something_would_be_noticed(written: tuple[Path, Path], tmp_path: Path) -> None:
    text = (written[1] / "index.html").read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</body>", '<img src="http://127.0.0.1:9/picture.png"></body>'))
    _, console = open_in_chromium(broken, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
