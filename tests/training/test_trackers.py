"""The trackers that have names, with the real packages, offline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.training import TrackedRun, fit_stage
from m3dt_agent.training.trackers import TRACKERS, TensorBoard, make_trackers

VALUES = {"router/loss": 0.5, "router/use/expert_000": 0.25}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def texts(folder: Path) -> dict[str, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}


def test_tensorboards_reader_finds_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = TrackedRun("router", "bank-1", tmp_path / "logs", {"steps": 3, "tasks": ["reach"]})
    for steps in ((1, 2), (2, 3)):  # interrupted after the second, continued from the first
        tracker = TensorBoard()
        tracker.start(run)
        for step in steps:
            tracker.log({name: value * step for name, value in VALUES.items()}, step)
        tracker.finish({"bank": "abc"})
    folder = tmp_path / "logs/tensorboard/router"
    assert scalars(folder) == {name: [(step, value * step) for step in (1, 2, 3)] for name, value in VALUES.items()}
    found = texts(folder)
    assert found["bank/text_summary"] == "abc"
    assert json.loads(found["config/text_summary"].strip("`json\n")) == run.config


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_said_and_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    (tracker,) = make_trackers(name)
    tracker.start(TrackedRun("router", "bank-1", tmp_path, {}))
    tracker.log(VALUES, 1)
    tracker.finish({})
    said = capsys.readouterr().err
    assert said.startswith(f"tracker {name} is left out from here on, training goes on: {name} is not installed: ")
    assert said.endswith(f"pip install 'm3dt-agent[{name}]'\n")


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ("wandbx", "trackers are some of tensorboard, wandb, trackio, each once; got 'wandbx'"),
        ("wandb,wandb", "got 'wandb' in 'wandb,wandb'"),
        ([3], "a tracker must be of type Tracker; got int"),
        (3, "trackers must be of type Sequence; got int"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_runs(
    data: TaskDatasets, make_bank: Callable[..., ExpertBank], trackers: Any, message: str
) -> None:
    bank = make_bank()
    with pytest.raises(ConfigError, match=message):
        fit_stage("backbone", data, bank, BackboneConfig(steps=1), progress=False, trackers=trackers)
    assert not (bank.path / "logs").exists()
