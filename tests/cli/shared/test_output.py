"""What commands print is text: nothing that a name, a path or a message says is markup or steers the terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from contracts import random_bank, random_datasets

import m3dt_agent.cli
from m3dt_agent.cli.shared.output import complain, emit, make_table, notes, say, together
from m3dt_agent.config import ModelConfig

HOSTILE = "\x1b]8;;http://evil\x07[bold red]link[/]\x1b[2J[/nonsense] :smile: \u202eabc\u200b\r\x9b31m"
SHOWN = r"\x1b]8;;http://evil\x07[bold red]link[/]\x1b[2J[/nonsense] :smile: \u202eabc\u200b\r\x9b31m"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def unwrapped(text: str) -> str:
    return re.sub(r"[│┃]", " ", text)


def test_everything_that_is_printed_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(HOSTILE, (HOSTILE, "n"), [[HOSTILE, 1.0], [None, HOSTILE]], left=2)
    table.add_section()
    table.add_row(HOSTILE, 2)
    emit({}, as_json=False, table=together(table, HOSTILE))
    say(HOSTILE)
    complain(f"error: {HOSTILE}")
    with notes(quiet=False), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("m3dt_agent.x").warning("kept %s", HOSTILE)
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 6
    assert err.count(SHOWN) == 4
    assert all(c.isprintable() or c == "\n" for c in out + err)


def test_quiet_leaves_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    with notes(quiet=True):
        say("a note")
        logging.getLogger("m3dt_agent.x").warning("a warning")
        warnings.warn("another", UserWarning, stacklevel=1)
        complain("error: this")
    assert capsys.readouterr().err == "error: this\n"
    assert "M3DT_QUIET" not in os.environ


def test_json_holds_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": HOSTILE}, as_json=True, table="")
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out


@pytest.mark.parametrize("name", ["[bold]bank[/]", "bank\x1b[31m", "[/nonsense]", "bank\u202e\u200b", "two\nlines"])
def test_a_folder_with_such_a_name(name: str, tmp_path: Path, run: Run) -> None:
    data = random_datasets(tmp_path / "datasets", ["cheetah-vel-3"])
    bank = random_bank(tmp_path / "made", data, ModelConfig.preset("tiny", n_experts=2))
    shutil.move(bank.path, tmp_path / name)
    code, out, err = run("info", tmp_path / name)
    assert (code, err) == (0, "")
    (tmp_path / name / "bank.json").write_text('{"format": "\x1b[2J[bold]"}')
    damaged = run("info", tmp_path / name)
    missing = run("info", tmp_path / name / name)
    for code, printed, error in (damaged, missing):
        assert (code, printed) == (1, "")
        assert error.startswith("error: ")
    told = out + damaged[2] + missing[2]
    assert all(c.isprintable() or c == "\n" for c in told)
    for part in re.findall(r"\[[^\]]*\]", name):
        assert part in out.replace("\n", "")  # a long path is folded


def test_no_command_makes_tables_of_its_own() -> None:
    for file in Path(m3dt_agent.cli.__file__).parent.glob("*.py"):
        if file.name != "output.py":
            assert "import Table" not in file.read_text(), f"{file.name} must use output.make_table, whose cells are text"
            assert "Console(" not in file.read_text(), file.name


def test_numbers_that_are_none_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [1.0, (float("nan"),)], "b": {"c": float("nan")}}, as_json=True, table="")
    assert json.loads(capsys.readouterr().out) == {"a": [1.0, [None]], "b": {"c": None}}
