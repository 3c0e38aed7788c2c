"""Checkpoints of a bank that somebody else filled: refused by name, or passed over for an older one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from m3dt_agent.errors import BankError, PathError
from m3dt_agent.system.disk import scratch_folder
from m3dt_agent.training.checkpoint import (
    RunState,
    newest_checkpoint,
    remove_checkpoints,
    started_runs,
    training_lock,
    write_checkpoint,
)

STATE = RunState("backbone", "backbone", 1, 0.5, 2, {"steps": 3}, {"data": "x"}, [0.25], [[1.0], [2.0], [1.0]], 1)
TENSORS = {"weights": {"a": torch.arange(3.0)}, "optimizer": {"a/exp_avg": torch.zeros(3)}}


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    write_checkpoint(tmp_path, STATE, TENSORS)
    write_checkpoint(tmp_path, dataclasses.replace(STATE, step=2), TENSORS)
    return tmp_path


def sealed(content: Any) -> str:
    return json.dumps({"sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), "content": content})


def test_a_checkpoint_is_read_as_it_was_written(bank: Path) -> None:
    found, problems = newest_checkpoint(bank, "backbone")
    assert found is not None
    assert (found.state, problems) == (dataclasses.replace(STATE, step=2), [])
    assert torch.equal(found.read("weights")["a"], TENSORS["weights"]["a"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["state"].update(step="2"), "state.step must be an integer"),
        (lambda c: c["state"].update(config=[]), "state.config must be an object"),
        (lambda c: c["state"].update(sums=[["x"]]), r"state.sums\[0\]\[0\] must be a number"),
        (lambda c: c["state"].update(sums=[[1.0], [1.0, 2.0]]), "rows of one length"),
        (lambda c: c["state"].update(sums=[[1.0]] * 10_000), "rows of one length"),
        (lambda c: c["state"].update(step=-1), "step, summed and seconds must not be negative"),
        (lambda c: c["state"].update(threads=10**6), "threads must be in 1 … 1024"),
        (lambda c: c["state"].update(stage="fourth"), "state.stage must be one of"),
        (lambda c: c["state"].update(more=1), "has no field 'more'"),
        (lambda c: c["state"].pop("summed"), "lacks summed"),
        (lambda c: c.update(files=[]), "files must be an object"),
        (
            lambda c: c["files"].update({"../../key.safetensors": c["files"]["weights.safetensors"]}),
            "not a file of a checkpoint",
        ),
        (lambda c: c["files"]["weights.safetensors"].update(bytes=1 << 50), "bytes must be in"),
        (lambda c: c["files"]["weights.safetensors"].update(sha256="x"), "64 hexadecimal digits"),
    ],
)
def test_a_state_of_another_shape_is_passed_over(bank: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    file = bank / "resume" / "backbone-2" / "state.json"
    content = json.loads(file.read_text())["content"]
    change(content)
    file.write_text(sealed(content))
    found, problems = newest_checkpoint(bank, "backbone")
    assert found is not None
    assert found.state.step == 1
    with pytest.raises(BankError, match=told):
        raise BankError(problems[0])


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"sha256": 1, "content": NaN}', sealed([1]), '"\\ud800"'])
def test_text_that_is_no_state_is_passed_over(bank: Path, text: str) -> None:
    (bank / "resume" / "backbone-2" / "state.json").write_text(text)
    found, problems = newest_checkpoint(bank, "backbone")
    assert found is not None
    assert (found.state.step, len(problems)) == (1, 1)
    (bank / "resume" / "backbone-1" / "state.json").write_text(text)
    with pytest.raises(BankError, match="every checkpoint of run 'backbone' is damaged"):
        newest_checkpoint(bank, "backbone")


def test_only_folders_that_are_numbered_as_ours_are_checkpoints(bank: Path) -> None:
    resume = bank / "resume"
    for name in ("backbone-٣", "backbone-", "backbone-1x", f"backbone-{'9' * 5000}"[:200], "backbone-²"):
        (resume / name).mkdir()
    (resume / "backbone-7").write_text("a file")
    assert started_runs(bank, "backbone") == ["backbone"]
    found, problems = newest_checkpoint(bank, "backbone")
    assert found is not None
    assert (found.state.step, problems) == (2, [])


def test_a_checkpoint_that_is_a_link_is_neither_written_through_nor_emptied(bank: Path, tmp_path_factory: Any) -> None:
    theirs = tmp_path_factory.mktemp("theirs")
    (theirs / "key").write_text("theirs")
    (bank / "resume" / "backbone-3").symlink_to(theirs)
    with pytest.raises(PathError, match="symbolic link"):
        write_checkpoint(bank, dataclasses.replace(STATE, step=3), TENSORS)
    write_checkpoint(bank, dataclasses.replace(STATE, step=4), TENSORS)
    remove_checkpoints(bank, "backbone")
    assert [path.name for path in theirs.iterdir()] == ["key"]


def test_trainers_that_share_a_bank_leave_each_others_checkpoints_in_the_making(tmp_path: Path) -> None:
    with training_lock(tmp_path, shared=True), scratch_folder(tmp_path / "resume") as theirs:
        with training_lock(tmp_path, shared=True):
            assert theirs.is_dir()
        with pytest.raises(BankError, match="another process is training"), training_lock(tmp_path):
            pass
