"""Options that several commands share: paths with ~, and a dataclass that becomes options."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from bad_paths import BAD, CASES, TASK

from m3dt_agent.cli import main
from m3dt_agent.cli.hub import data_pull_command, data_push_command
from m3dt_agent.cli.shared.options import complete_tasks, expanded, with_options_of
from m3dt_agent.errors import ConfigError

Run = Callable[..., tuple[int, str, str]]


@dataclasses.dataclass(frozen=True)
class Shared:
    name: Annotated[str, typer.Argument()]
    count: Annotated[int, typer.Option()] = 3


def test_home_is_expanded_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert expanded(None) is None
    assert expanded("~/bank") == "/home/somebody/bank"
    assert expanded(Path("~/bank")) == Path("/home/somebody/bank")
    for text in ("builtin:mt160", "./like/this", "a/~/b", "user/name", "runs/~"):
        assert expanded(text) == text
    with pytest.raises(ConfigError, match=r"no home folder for '~nobody-here/x'; write \./~nobody-here/x"):
        expanded("~nobody-here/x")
    with pytest.raises(ConfigError, match=r"a path is empty; write \. for the folder you are in"):
        expanded("")


@pytest.mark.parametrize("case", [case for case, (kinds, _) in CASES.items() if "missing" in kinds], ids=" ".join)
def test_home_in_every_path_that_is_read(
    case: tuple[str, str], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    words = [word.format(bad="~/nowhere", made=tmp_path, new=tmp_path / "new") for word in CASES[case][1]]
    code, _, err = run(*words)
    assert code == 1
    assert "~" not in err
    assert not (tmp_path / "~").exists()


def test_home_in_a_path_that_is_written(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert BAD in CASES["collect", "root"][1]
    assert run("collect", TASK, "--episodes", 1, "--workers", 0, "--root=~/data", "--quiet")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "data" / "m3dt" / TASK / "expert-v0").is_dir()


def test_a_dataclass_becomes_options() -> None:
    seen = []

    @with_options_of(Shared)
    def command(asked: Shared, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
        """Says so."""
        seen.append((asked, loud))

    app = typer.Typer()
    app.command()(command)
    app(["x", "--count", "5", "--loud"], standalone_mode=False)
    app(["y"], standalone_mode=False)
    assert seen == [(Shared("x", 5), True), (Shared("y", 3), False)]
    assert list(inspect.signature(command).parameters) == ["name", "count", "loud"]


def test_push_and_pull_of_datasets_share_their_options() -> None:
    pushes, pulls = (set(inspect.signature(one).parameters) for one in (data_push_command, data_pull_command))
    assert pushes - pulls == {"private"}
    assert pulls - pushes == {"revision"}


def test_names_are_completed() -> None:
    assert complete_tasks("walker-run") == ["walker-run", "walker-run-backwards"]
    assert complete_tasks("mt1") == ["mt10", "mt120", "mt160"]
    assert complete_tasks("zz") == []


@pytest.mark.parametrize("command", [("info", "runs/bakn"), ("play", TASK, "--bank", "runs/bakn"), ("eval", "runs/bakn", TASK)])
def test_a_mistyped_bank_asks_nobody(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("no command on a local bank uses the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert main([*command]) == 1
    assert os.environ.get("HF_HUB_OFFLINE") is None
