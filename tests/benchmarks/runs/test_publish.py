"""From a run to the package: the bank that acted, a card whose numbers are its rows', and rows that can be read again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.records import Cell, read_run
from benchmarks.runs.publish import publish_bank
from benchmarks.runs.runner import run_cells
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank, builtin
from m3dt_agent.errors import DatasetError
from m3dt_agent.model import Routing
from m3dt_agent.system import disk

from .test_runner import SETTINGS, TASKS

pytest.importorskip("mujoco")

BANK: dict[str, Any] = SETTINGS | {"storage": "bfloat16", "skip_below": 0.05, "concentrate": 0.003}


def cell(method: str, settings: dict[str, Any]) -> Cell:
    return Cell("pretrained", method, "two", 0, 0, "box", "best", TASKS, settings)


ACTORS = [cell(name, BANK) for name in ("bank-mixture", "bank-routed", "bank-backbone", "bank-oracle")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    cells = [*ACTORS, cell("behavior", SETTINGS), cell("bank-mixture", BANK | {"later_seed": 1})]
    run_cells(cells, folder / "run", folder / "datasets", workers=0, progress=False, say=lambda _: None)
    return folder / "run"


def test_what_is_shipped_acted_and_its_card_says_how(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # what was there is replaced
        notes = ["### How it was made\n\nQuickly."]
        shipped = publish_bank(run, tmp_path / "banks" / "small", tmp_path / "results", notes, version="2")
    assert shipped.version == "2"
    results = {(r.cell.method, "later_seed" in r.cell.settings): r for r in read_run(tmp_path / "results" / "cells")}
    assert len(results) == 6
    routed = results["bank-routed", False]
    assert {row.bank_hash for row in routed.final} == {shipped.content_hash}
    assert results["bank-mixture", True].final[0].bank_hash != shipped.content_hash
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "banks")
    agent = M3DTAgent.from_pretrained("builtin:small")
    assert isinstance(agent.experts, Routing)
    card = (tmp_path / "banks" / "small" / "README.md").read_text()
    mean = np.mean([row.normalized_score for row in routed.final])
    assert f"| **{mean:.1f}** |" in card.split("| **mean** |")[1].splitlines()[0]
    assert "Under half of the behavior policy:" in card
    assert "### How it was made" in card
    assert "| version | 2 |" in card
    worst = card.split("### Why the worst are weak")[1].split("\n\n")[2].splitlines()[2:]
    for line in worst:
        task, behavior, demonstrations, expert, score, noise, reason = (value.strip() for value in line.split("|")[1:-1])
        for shown, method in ((behavior, "behavior"), (expert, "bank-oracle"), (score, "bank-routed")):
            mean = np.mean([row.normalized_score for row in results[method, False].final if row.task == task])
            assert shown == f"{mean:.1f}"
        way = [float(value) for value in (behavior, demonstrations, expert, score)]
        lost = dict(zip(("data", "experts", "router"), -np.diff(way), strict=True))
        assert reason == "noise" if max(lost.values()) < float(noise) else lost[reason] == max(lost.values())
    assert len(worst) == len(TASKS)
    for policy in ("bank-routed", "bank-mixture", "bank-backbone", "expert"):
        assert f"| {policy} |" in card
    assert sorted(path.name for path in tmp_path.joinpath("banks").iterdir()) == ["small"]


def test_a_run_without_its_bank_ships_nothing(run: Path, tmp_path: Path) -> None:
    run_cells(
        [cell("random", SETTINGS)], tmp_path / "run", run.parent / "datasets", workers=0, progress=False, say=lambda _: None
    )
    with pytest.raises(DatasetError, match="holds no bank that acted"):
        publish_bank(tmp_path / "run", tmp_path / "banks" / "small", tmp_path / "results")
    assert not (tmp_path / "banks").exists()


def test_what_was_published_survives_a_failure_and_a_kill(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, results = tmp_path / "banks" / "small", tmp_path / "results"
    before = publish_bank(run, bank, results).content_hash
    published = sorted(path.relative_to(results) for path in results.rglob("*"))
    copied: list[Path] = []

    def full_disk(source: Path, target: Path, **_: Any) -> None:
        copied.append(target)
        target.mkdir()
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full_disk)
        with pytest.raises(OSError, match="no room"):
            publish_bank(run, bank, results)
    assert copied
    assert sorted(path.relative_to(results) for path in results.rglob("*")) == published
    cell_folder = next((results / "cells").iterdir())
    for folder in (bank, cell_folder):  # as a kill inside `replace_folder` leaves them
        folder.rename(folder.with_name(f"{disk._REPLACED}{folder.name}"))
    run_cells(
        [cell("random", SETTINGS)], tmp_path / "other", run.parent / "datasets", workers=0, progress=False, say=lambda _: None
    )
    with pytest.raises(DatasetError, match="holds no bank that acted"):
        publish_bank(tmp_path / "other", bank, results)
    assert ExpertBank.open(bank).content_hash == before
    assert sorted(path.relative_to(results) for path in results.rglob("*")) == published
