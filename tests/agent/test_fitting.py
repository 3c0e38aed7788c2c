"""The bank that a stage is trained into: opened, copied or made at a path, and checked against the agent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from acting_banks import CONFIG

from m3dt_agent.agent.fitting import bank_to_fit
from m3dt_agent.bank import ExpertBank, is_bank
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, M3DTError, StageError


def fit(data: TaskDatasets, bank: Any, /, **changes: Any) -> ExpertBank:
    return bank_to_fit(
        bank, **{"own": None, "config": CONFIG, "tasks": data.tasks, "data": data, "may_create": False} | changes
    )


def test_an_open_bank_is_used_itself_and_one_at_a_path_is_opened(data: TaskDatasets, bank: ExpertBank) -> None:
    assert fit(data, bank) is bank
    for path in (bank.path, str(bank.path)):
        assert fit(data, path).content_hash == bank.content_hash


def test_where_there_is_no_bank_the_agents_own_is_copied(data: TaskDatasets, bank: ExpertBank, tmp_path: Path) -> None:
    copy = fit(data, tmp_path / "copy", own=bank, may_create=True)
    assert copy.path == tmp_path / "copy"
    assert copy.content_hash == bank.content_hash


def test_a_new_bank_is_made_only_where_that_is_meant(data: TaskDatasets, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no bank at .*; run fit_stage\('backbone', \.\.\.\) first"):
        fit(data, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    made = fit(data, tmp_path / "bank", may_create=True)
    assert is_bank(tmp_path / "bank")
    assert made.status("backbone") == "absent"
    assert tuple(made.prompts) == tuple(task.name for task in data.tasks)


def test_a_home_folder_is_meant_by_a_tilde(data: TaskDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fit(data, "~/bank", may_create=True).path == tmp_path / "bank"


def test_what_does_not_fit_is_refused_and_nothing_is_written(data: TaskDatasets, bank: ExpertBank, tmp_path: Path) -> None:
    other = dataclasses.replace(CONFIG, n_layers=3)
    cases: list[tuple[Any, dict[str, Any], type[M3DTError], str]] = [
        (bank, {"tasks": data.tasks[::-1]}, ConfigError, r"the datasets hold the tasks .*\(the order counts\)"),
        (bank, {"data": data.subset(["reach"]), "tasks": data.tasks[:1]}, ConfigError, "the bank .* hold the tasks"),
        (bank, {"config": other}, ConfigError, "holds ModelConfig.*; the agent is ModelConfig.*n_layers=3"),
        (bank, {"data": data.packed}, ConfigError, "data must be of type TaskDatasets; got tuple"),
        (5, {}, ConfigError, "bank must be of type str or PathLike or ExpertBank; got int"),
        (None, {}, ConfigError, "bank must be of type"),
        ("builtin:mt160", {"may_create": True}, BankError, "comes with the package"),
    ]
    for given, changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            fit(data, given, **changes)
    assert list(tmp_path.iterdir()) == []
