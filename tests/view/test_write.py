"""What a path is, where its page goes, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import HOSTILE_NAME, ReadPage

from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import BankError, ConfigError, PathError
from m3dt_agent.view import Request, write_page
from m3dt_agent.view.write import default_name, kind_of


@pytest.fixture
def training(tmp_path: Path) -> Path:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "router.csv").write_text("step,expert,loss\n10,,0.5\n")
    return tmp_path / "run"


def test_a_path_says_what_it_is(root: Path, bank: ExpertBank, training: Path) -> None:
    assert [kind_of(path) for path in (root, bank.path, training, "builtin:mt160")] == ["datasets", "bank", "run", "bank"]


def test_what_is_nothing_names_what_is_inside(tmp_path: Path, training: Path) -> None:
    with pytest.raises(ConfigError, match=rf"is nothing that a page can show: .*here are {training}"):
        kind_of(tmp_path)
    with pytest.raises(PathError, match="there is nothing here"):
        kind_of(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file; a page shows a folder with datasets"):
        kind_of(tmp_path / "file")
    with pytest.raises(BankError, match="no bank 'builtin:none'"):
        write_page("builtin:none", tmp_path / "page.html")


def test_the_page_is_written_whole_where_it_was_asked_for(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_page(training, tmp_path / "new" / "page.html")
    assert (made.kind, made.path, made.n_bytes) == ("run", tmp_path / "new" / "page.html", made.path.stat().st_size)
    assert "loss" in ReadPage(made.path.read_text()).data["plots"]
    monkeypatch.chdir(tmp_path)
    assert write_page(training).path.samefile(tmp_path / "m3dt-view-run.html")
    with pytest.raises(PathError, match="there is a folder where a file should be"):
        write_page(training, tmp_path)


def test_names_of_pages_are_plain(tmp_path: Path) -> None:
    assert default_name("builtin:mt160") == "m3dt-view-builtin-mt160.html"
    assert default_name(tmp_path / HOSTILE_NAME) == "m3dt-view-img-src-x-onerror-document.title-1.html"
    assert default_name("/") == "m3dt-view-page.html"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(rows=(Path("rows"),)), "rows goes with the page of a bank; this is a training or a benchmark run"),
        (Request(data=Path("root")), "data goes with the page of a bank"),
        (Request(source="expert"), "source goes with the page of a bank"),
        (Request(clips=("reach",)), "clips go with the pages of datasets and of a bank"),
    ],
)
def test_what_a_kind_of_page_has_not_is_refused(training: Path, tmp_path: Path, request_: Request, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_page(training, tmp_path / "page.html", request_)
    assert not (tmp_path / "page.html").exists()
