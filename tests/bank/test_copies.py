"""Whole new folders: copies, and banks for some of the tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m3dt_agent.bank import ExpertBank
from m3dt_agent.cli.info import bank_table, describe_bank
from m3dt_agent.errors import BankError, StageError, UnknownTaskError


def test_a_copy_holds_the_public_files_and_nothing_else(full_bank: ExpertBank, tmp_path: Path) -> None:
    (full_bank.path / "resume").mkdir()
    copy = full_bank.copy_to(tmp_path / "copies" / "one")
    assert copy.content_hash == full_bank.content_hash
    found = {str(file.relative_to(copy.path)) for file in copy.path.rglob("*") if file.is_file()}
    assert found == {"bank.json", *full_bank.manifest.files}
    with pytest.raises(BankError, match="not an empty folder"):
        full_bank.copy_to(tmp_path / "copies" / "one")


def test_a_version_is_in_the_manifest_and_in_no_hash(full_bank: ExpertBank, tmp_path: Path) -> None:
    assert full_bank.version == ""
    assert '"version"' not in full_bank.manifest.to_json(), "banks without one are as before"
    copy = full_bank.copy_to(tmp_path / "second", version="2")
    assert (copy.version, copy.content_hash) == ("2", full_bank.content_hash)
    assert copy.copy_to(tmp_path / "third").version == "2"
    names, values = ([str(cell) for cell in column.cells] for column in bank_table(describe_bank(copy)).columns)
    assert values[names.index("version")] == "2"


def test_a_bank_for_some_of_the_tasks_has_all_but_the_router(full_bank: ExpertBank, tmp_path: Path) -> None:
    names = list(full_bank.manifest.tasks)[::-1][:2]
    part = full_bank.for_tasks(tmp_path / "part", names)
    assert part.manifest.tasks == tuple(names)
    assert part.groups == {name: full_bank.groups[name] for name in names}  # type: ignore[index]
    assert (part.status("experts"), part.status("router")) == ("done", "absent")
    for name in ("backbone.safetensors", "experts/001.safetensors"):
        assert part.manifest.files[name].sha256 == full_bank.manifest.files[name].sha256
    for name in names:
        np.testing.assert_array_equal(part.statistics[name].mean, full_bank.statistics[name].mean)
        np.testing.assert_array_equal(part.prompts[name][0].states, full_bank.prompts[name][0].states)
    with pytest.raises(BankError, match="not an empty folder"):
        full_bank.for_tasks(tmp_path / "part", names)
    with pytest.raises(UnknownTaskError, match="unknown task of this bank 'fish-swim'"):
        full_bank.for_tasks(tmp_path / "other", ["fish-swim"])
    with pytest.raises(StageError, match="lacks its backbone or some experts"):
        ExpertBank.open(full_bank.path, experts=[0]).for_tasks(tmp_path / "other", names)
    assert not (tmp_path / "other").exists()


def test_a_bank_for_one_task_keeps_the_experts_of_the_others(full_bank: ExpertBank, tmp_path: Path) -> None:
    name = full_bank.manifest.tasks[0]
    part = full_bank.for_tasks(tmp_path / "part", [name])
    assert part.groups == {name: full_bank.groups[name]}  # type: ignore[index]
    assert part.finished_experts == full_bank.finished_experts
    assert len(part.finished_experts) > 1
