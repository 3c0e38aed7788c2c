"""The index of a pack is checked before it is used, also one whose hash is right; a bad one is made anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from m3dt_agent import tasks
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.pack_index import read_index
from m3dt_agent.errors import DatasetError

TASK = tasks.get("push")
Arrays = dict[str, np.ndarray]


def put(name: str, value: Any) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.__setitem__(name, np.asarray(value))


FORGERIES: dict[str, Callable[[Arrays], Any]] = {
    "episodes beyond the file": put("offsets", [0, 5, 6, 10**12]),
    "episodes backwards": put("offsets", [0, 40, 6, 36]),
    "offsets in floats": put("offsets", [0.0, 5.0, 6.0, 36.0]),
    "a return for no episode": put("returns", [0.0] * 4),
    "a return that is infinite": put("returns", [0.0, np.inf, 0.0]),
    "returns that are one number": put("returns", 0.0),
    "a mean that is wide": put("obs_mean", np.zeros(1_000)),
    "a mean that is NaN": put("obs_mean", np.full(TASK.obs_dim, np.nan)),
    "a deviation below zero": put("obs_std", np.full(TASK.obs_dim, -1.0)),
    "success of others": put("success", [True]),
    "prompts that are not there": put("prompt_episodes", [0, 7]),
    "a prompt twice": put("prompt_episodes", [1, 1]),
    "prompts before the first": put("prompt_episodes", [-1]),
    "no offsets": lambda arrays: arrays.pop("offsets"),
    "something more": put("weights", [1.0]),
    "a mark of another form": put("stop_after_success", [1, 2]),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_index_is_made_anew(forge: Callable[[Arrays], Any], tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    dataset = make_dataset(tmp_path, TASK, (5, 1, 30))
    before = pack_dataset(dataset, TASK)
    (folder,) = (tmp_path / ".packed" / TASK.name).glob("*-v0-*")
    file = folder / "episodes.safetensors"
    whole = file.read_bytes()
    arrays = load_file(file)
    forge(arrays)
    save_file(arrays, file)
    description = json.loads((folder / "pack.json").read_text())
    description["episodes_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(description))
    with pytest.raises(DatasetError, match="the index of a pack of task 'push' is damaged"):
        read_index(file.read_bytes(), TASK, 36)
    after = pack_dataset(dataset, TASK)
    assert after.offsets.tolist() == before.offsets.tolist()
    assert file.read_bytes() == whole


def test_an_index_of_gigabytes_is_not_read(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    dataset = make_dataset(tmp_path, TASK, (5, 1, 30))
    pack_dataset(dataset, TASK)
    (file,) = (tmp_path / ".packed" / TASK.name).glob("*-v0-*/episodes.safetensors")
    with file.open("r+b") as content:
        content.truncate(3_000_000_000)
    assert pack_dataset(dataset, TASK).offsets.tolist() == [0, 5, 6, 36]
