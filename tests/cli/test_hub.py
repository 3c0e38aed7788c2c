"""`m3dt push`, `pull`, `data push`, `data pull` against a loopback Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts import random_bank, random_datasets
from hub_server import Hub
from huggingface_hub import close_session

from m3dt_agent.bank import ExpertBank
from m3dt_agent.cli import main
from m3dt_agent.cli.hub import read_token
from m3dt_agent.cli.shared.options import parse_experts
from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ConfigError

Run = Callable[..., dict[str, Any]]
TASKS = ["cheetah-vel-3", "reacher-easy"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", tokens={"hf_alice": "alice"}) as hub:
        yield hub
        close_session()


@pytest.fixture
def bank(tmp_path: Path) -> ExpertBank:
    data = random_datasets(tmp_path / "datasets", TASKS)
    bank = random_bank(tmp_path / "bank", data, ModelConfig.preset("tiny", n_experts=2))
    bank.commit({}, groups=dict(zip(TASKS, (0, 1), strict=True)))
    return bank


@pytest.fixture
def run(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with the Hub's address and a token file, and gives its JSON."""
    (tmp_path / "token").write_text("hf_alice\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)

    def command(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        where = ["--endpoint", hub.endpoint, "--token-file", str(tmp_path / "token"), "--json"]
        code = main([*map(str, arguments), *where])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "hf_alice" not in out + err
        document: dict[str, Any] = json.loads(out)
        return document

    return command


def test_a_bank_there_and_back(run: Run, bank: ExpertBank, tmp_path: Path) -> None:
    pushed = run("push", bank.path, "alice/bank", "--private")
    assert pushed["tag"] == "stage-router"
    pulled = run("pull", "alice/bank", tmp_path / "copy", "--revision", "stage-router")
    assert pulled["sha"] == pushed["sha"]
    assert pulled["content_hash"] == bank.content_hash
    assert run("pull", "alice/bank", "--experts", "1")["finished_experts"] == [1]
    assert run("pull", "alice/bank", "--task", "cheetah-vel-3")["finished_experts"] == [0]


def test_rows_become_scores_on_the_card(run: Run, hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    rows = tmp_path / "rows.jsonl"
    assert main(["eval", str(bank.path), "cheetah-vel-3", "--episodes", "1", "--workers", "0", "--rows", str(rows)]) == 0
    run("push", bank.path, "alice/bank", "--rows", rows)
    assert b"scores.png" in hub.read("models", "alice/bank", "README.md")
    assert hub.read("models", "alice/bank", "scores.png").startswith(b"\x89PNG")


def test_datasets_there_and_back(run: Run, bank: ExpertBank, tmp_path: Path) -> None:
    assert len(run("data", "push", "alice/data", "--root", tmp_path / "datasets")["datasets"]) == 2
    pulled = run("data", "pull", "alice/data", "reacher-easy", "--root", tmp_path / "new")
    assert [row["dataset"] for row in pulled["datasets"]] == ["m3dt/reacher-easy/random-v0"]
    assert [row["new"] for row in run("data", "pull", "alice/data", "--root", tmp_path / "new")["datasets"]] == [True, False]


def test_tables_for_people(run: Run, hub: Hub, bank: ExpertBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--endpoint", hub.endpoint, "--token-file", str(tmp_path / "token")]
    for command in (["push", bank.path, "alice/bank"], ["pull", "alice/bank"], ["push", bank.path, "alice/bank"]):
        assert main([*map(str, command), *where]) == 0
    out = capsys.readouterr().out
    assert "stage-router" in out
    assert "the routed mixture" in out
    assert "none: it was all there" in out


def test_a_folder_instead_of_the_hub(bank: ExpertBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(bank.path), str(tmp_path / "shared"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha"] is None
    assert main(["pull", str(tmp_path / "shared"), str(tmp_path / "copy")]) == 0
    assert ExpertBank.open(tmp_path / "copy").content_hash == bank.content_hash


def test_errors_are_one_line(hub: Hub, bank: ExpertBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("hf_nobody")
    where = ["--endpoint", hub.endpoint, "--token-file", str(tmp_path / "token")]
    assert main(["push", str(bank.path), "alice/bank", *where]) == 1
    err = capsys.readouterr().err.replace("\n", " ")
    assert err.startswith("error: model alice/bank")
    assert "hf_nobody" not in err
    assert main(["pull", "alice/none", "--endpoint", hub.endpoint]) == 1
    assert main(["pull", "no-such-folder"]) == 1


@pytest.mark.parametrize("content", ["", "two tokens", "\n\n"])
def test_what_a_token_file_must_hold(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigError, match="must hold one token"):
        read_token(tmp_path / "token")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "nothing")
    assert read_token(None) is None


def test_experts_are_numbers() -> None:
    assert parse_experts("3, 7") == (3, 7)
    for text in ("", "a", "1-3", "1,,2", "-1"):
        with pytest.raises(ConfigError, match="numbers with commas"):
            parse_experts(text)


def test_offline_from_the_environment(run: Run, hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    sha = run("push", bank.path, "alice/bank")["sha"]
    run("pull", "alice/bank")
    hub.clear()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "m3dt_agent.cli", "pull", "alice/bank", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sha"] == sha
    assert not hub.requests
