"""`--prompt-from` of `m3dt play` and `m3dt eval`: a task that the bank does not have, by one demonstration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from contracts import random_bank, random_datasets
from own_tasks import POINT

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.task_datasets import TaskDatasets

Run = Callable[..., tuple[int, str, str]]
HAD = "cheetah-vel-3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bank: of another task. data: one episode of POINT. Not to be changed."""
    folder = tmp_path_factory.mktemp("few")
    random_bank(folder / "bank", random_datasets(folder / "had", [HAD]), ModelConfig.preset("tiny", n_experts=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.registry, "_own", {})
        tasks.register(POINT)
        collect([POINT], folder / "data", CollectConfig(levels={"random": 1.0}, episodes=1), workers=0)
    return folder


@pytest.fixture(autouse=True)
def _registered(own_registry: None) -> None:
    tasks.register(POINT)


def test_a_task_is_played_and_evaluated_as_a_bank_that_keeps_it_plays_it(folder: Path, tmp_path: Path, run: Run) -> None:
    shown = (POINT.name, "--prompt-from", folder / "data", "--json")
    played = json.loads(run("play", *shown, "--bank", folder / "bank", "--seed", 7)[1])
    options = ("--episodes", 1, "--seed", 7, "--workers", 0)
    code, out, _ = run("eval", folder / "bank", *shown, *options, "--source", "random", "--rows", tmp_path / "rows.jsonl")
    assert (code, json.loads(out)["tasks"][POINT.name]["mean_return"]) == (0, played["episode_return"])
    data = TaskDatasets.open(folder / "data", [POINT], few=True)
    kept = ExpertBank.open(folder / "bank").with_tasks(tmp_path / "kept", data)
    assert played["bank_hash"] == kept.content_hash
    # its rows are those of the bank that keeps the task: nothing is left to play
    again = run("eval", kept.path, POINT.name, *options, "--rows", tmp_path / "rows.jsonl", "--json")[1]
    assert json.loads(again) == json.loads(out)
    described = json.loads(run("info", kept.path, "--json")[1])
    assert (described["shown"], described["tasks"]) == ([POINT.name], [HAD, POINT.name])
    assert "shown, not trained on" in run("info", kept.path)[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("play", HAD, "--prompt-from", "data"), "the bank has all of these tasks"),
        (("play", POINT.name, "--source", "random"), "--source random names a dataset under --prompt-from ROOT"),
        (("play", POINT.name), "unknown task of this agent 'own-point'"),
        (("play", "reach", "--prompt-from", "data"), "no dataset of task 'reach'"),
        (("eval", "random", POINT.name, "--prompt-from", "data"), "--prompt-from goes with a bank"),
        (("eval", "bank", "--prompt-from", "data"), "the bank has all of these tasks"),
    ],
)
def test_what_cannot_be_shown_is_named(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    bank = ("--bank", "bank") if command[0] == "play" else ("--episodes", 1, "--workers", 0)
    code, out, err = run(*command, *bank)
    assert (code, out) == (1, "")
    assert message in err
