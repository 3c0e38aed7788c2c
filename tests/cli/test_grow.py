"""`m3dt grow`: a bank gets a task from the command line, and continues what was begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from own_tasks import SWING
from small_banks import new_bank, parts, random_model

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.collect import CollectConfig, collect

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("own_registry")
def test_a_bank_grows_from_the_command_line(run: Run, tmp_path: Path) -> None:
    tasks.register(SWING)
    collect([SWING], tmp_path / "data", CollectConfig(levels={"random": 1.0}, episodes=3), workers=0)
    bank, to = new_bank(tmp_path / "bank"), tmp_path / "grown"
    common = ("--root", tmp_path / "data", "--batch-size", 4, "--steps", 2)
    code, out, err = run("grow", bank.path, to, "own-swing", *common)
    assert (code, out) == (1, "")
    assert "has no backbone yet, so it cannot grow" in err
    bank.commit(parts(random_model()), groups={"walker-run": 0, "reach": 1})
    code, out, err = run("grow", bank.path, to, "own-swing", *common, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["grown"], document["untrained"]) == ([{"own-swing": 2}], [])
    assert ExpertBank.open(to).growths[0].training["config"]["steps"] == 2
    code, out, err = run("grow", bank.path, to, "--root", tmp_path / "data")  # nothing is left to do
    assert code == 0, err
    assert "grown by expert 2" in out
    code, out, err = run("grow", bank.path, tmp_path / "new", "reach", "--root", tmp_path / "data")
    assert (code, out) == (1, "")
    code, _, err = run("grow", bank.path, tmp_path / "new")
    assert "no tasks named" in err
    code, _, err = run("train", "--bank", to, "--root", tmp_path / "data", "--stage", "router")
    assert (code, "has grown, so its stages are as they are" in err) == (1, True)
