"""The trackers that have names, with the real packages, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.training import TrackedRun, fit_stage
from m3dt_agent.training.logs import log_file, read_log
from m3dt_agent.training.tracking.trackers import TRACKERS, TensorBoard, make_trackers

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


# -- the three packages, offline -----------------------------------------------------------------------------------------------

RUNS = ("backbone", "experts-000-001", "experts-002-002", "router")
SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "HF_TOKEN": "hf_" + "Secret" * 6}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """A folder with a bank, trained in a process of its own, followed by whatever is installed; and what the log says.

    The program runs where no home folder and no network is.
    """
    folder = tmp_path_factory.mktemp("followed")
    names = ",".join(name for name in TRACKERS if importlib.util.find_spec(name))
    home = {"HOME": str(folder / "home"), "HF_HOME": str(folder / "hf"), "TRACKIO_DIR": str(folder / "trackio")}
    offline = {
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    hashes = []
    for name, followers in (("plain", []), ("bank", [names])):
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("tracked_program.py")), str(folder / name), *followers],
            env={**os.environ, **home, **offline, **SECRETS},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "left out" not in done.stderr
        hashes.append(done.stdout.splitlines()[-1])
    assert hashes[0] == hashes[1]
    assert ExpertBank.open(folder / "bank").content_hash == hashes[0]
    return folder, [
        {"step": float(row["step"]), "loss": float(row["loss"])} for row in read_log(log_file(folder / "bank", "router"))
    ]


def without_paths(content: bytes, folder: Path) -> None:
    for private in (str(folder), os.uname().nodename + ".", *SECRETS.values()):
        assert private.encode() not in content, private


@pytest.mark.slow
def test_nothing_secret_is_written(followed: tuple[Path, Any]) -> None:
    folder, _ = followed
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        for secret in SECRETS.values():
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_wandbs_file_holds_what_was_logged(followed: tuple[Path, list[dict[str, float]]]) -> None:
    pytest.importorskip("wandb")
    folder, rows = followed
    files = {run: list(folder.glob(f"bank/logs/wandb/*-{run}/*.wandb")) for run in RUNS}
    assert [len(found) for found in files.values()] == [1] * len(RUNS)
    (file,) = files["router"]
    without_paths(file.read_bytes(), folder)
    records = wandb_records(file.read_bytes())
    history = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item} for one in records]
    logged = [one for one in history if "router/loss" in one]
    assert [{"step": one["_step"], "loss": one["router/loss"]} for one in logged] == rows
    assert sum(logged[-1][f"router/use/expert_{e:03d}"] for e in range(3)) == pytest.approx(1, abs=1e-5)
    (run,) = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, run.run_group) == ("m3dt", run.run_id.removesuffix("-router"))
    assert (config["stage"], config["steps"], config["model"]["n_experts"]) == ("router", 6, 3)
    summary = {item.key: json.loads(item.value_json) for one in records for item in one.summary.update}
    assert summary["bank"] == ExpertBank.open(folder / "bank").content_hash
    assert config["bank"] != summary["bank"]


def wandb_records(content: bytes) -> list[Any]:
    """The records of a .wandb file: after 7 bytes, blocks of 32 kB of pieces (4 bytes checksum, 2 length, 1 kind)."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, found, held = 7, [], b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        held += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(held))
            held = b""
    return found


@pytest.mark.slow
def test_trackios_database_holds_what_was_logged(followed: tuple[Path, list[dict[str, float]]]) -> None:
    pytest.importorskip("trackio")
    folder, rows = followed
    (database,) = folder.glob("trackio/m3dt.db")
    without_paths(database.read_bytes(), folder)
    with sqlite3.connect(database) as opened:
        metrics = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = dict(opened.execute("SELECT run_name, config FROM configs").fetchall())
    assert [name.split()[-1] for name in configs] == list(RUNS)
    of_router = [(step, json.loads(values)) for name, step, values in metrics if name.endswith(" router")]
    assert [{"step": step, "loss": values["router/loss"]} for step, values in of_router if "router/loss" in values] == rows
    assert of_router[-1][1]["bank"] == ExpertBank.open(folder / "bank").content_hash
    (config,) = [json.loads(config) for name, config in configs.items() if name.endswith(" router")]
    assert (config["stage"], config["steps"], config["model"]["n_experts"]) == ("router", 6, 3)


@pytest.mark.slow
def test_tensorboard_follows_the_same_training(followed: tuple[Path, list[dict[str, float]]]) -> None:
    pytest.importorskip("tensorboard")
    folder, rows = followed
    found = {run: scalars(folder / "bank/logs/tensorboard" / run) for run in RUNS}
    assert [{"step": step, "loss": pytest.approx(loss)} for step, loss in found["router"]["router/loss"]] == rows
    assert [step for step, _ in found["backbone"]["backbone/conflict"]] == [2, 4, 6]
    assert "experts/loss/expert_002" in found["experts-002-002"]
