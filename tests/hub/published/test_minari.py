"""Minari datasets: what is imported."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from published_writers import (
    assert_holds,
    trajectory,
    write_mt160,
)

from m3dt_agent import tasks
from m3dt_agent.data.episodes import Episode, read_metadata, validate_dataset, write_dataset
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.hub.convert_data import import_datasets


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A Minari dataset as others write them: float64, wild actions, success not latched, an env_spec that runs a command."""
    task = tasks.get("reach")
    episodes = []
    for i in range(4):
        one = trajectory(task, 20, i)
        last = np.arange(20) == 19
        episodes.append(Episode(**one, terminations=last & False, truncations=last, success=np.arange(20) == 11, seed=i))
    path = write_dataset(tmp_path / "foreign", task, "human", episodes, metadata={})
    file = path / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["env_spec"]) | {"entry_point": "os:system", "kwargs": {"command": f"touch {tmp_path / 'ran'}"}}
    for key in ("m3dt_task", "m3dt_source", "observation_space"):
        del metadata[key]
    file.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec), "dataset_id": "mujoco/reach/human-v0"}))
    with h5py.File(path / "data" / "main_data.hdf5", "a") as steps:
        for group in steps.values():
            for name in ("observations", "actions", "rewards"):
                values = group[name][()].astype(np.float64) * (7.7 if name == "actions" else 1.0)
                del group[name]
                group[name] = values
    return path


def test_minari(tmp_path: Path, foreign: Path) -> None:
    task = tasks.get("reach")
    written = [trajectory(task, 20, i) for i in range(4)]
    for one in written:
        one["actions"] = one["actions"].astype(np.float32).astype(np.float64) * 7.7
        one["rewards"] = one["rewards"].astype(np.float32)
    (summary,) = import_datasets("minari", foreign, tmp_path / "root", [task], source="human")
    read = assert_holds(summary.path, written)
    assert [episode.seed for episode in read] == [0, 1, 2, 3]
    for episode in read:
        np.testing.assert_array_equal(episode.success, np.arange(20) >= 11)  # latched
    metadata = read_metadata(summary.path)
    assert json.loads(metadata["env_spec"])["id"] == task.env_id
    assert "touch" not in json.dumps(metadata)
    assert (metadata["m3dt_original"], metadata["stop_after_success"]) == ("mujoco/reach/human-v0", 0)
    assert summary.clipped_actions > 0
    assert validate_dataset(summary.path, task) == []
    assert not (tmp_path / "ran").exists()
    for names in (None, ["reach", "push"]):
        with pytest.raises(ConfigError, match="exactly one task"):
            import_datasets("minari", foreign, tmp_path / "root", names)
    with pytest.raises(DatasetError, match="recorded in M3DT/reach-v0: it holds data of task 'reach', not 'walker-run'"):
        import_datasets("minari", foreign, tmp_path / "root", ["walker-run"])
    file = foreign / "data" / "metadata.json"
    without = {key: value for key, value in json.loads(file.read_text()).items() if key != "env_spec"}
    file.write_text(json.dumps(without))
    with pytest.raises(DatasetError, match=r"human-v0, episode 0: observations is \(21, 39\); it must be \(21, 24\)"):
        import_datasets("minari", foreign, tmp_path / "root", ["walker-run"])


def test_one_of_our_own_keeps_what_it_says(tmp_path: Path) -> None:
    task = tasks.get("push")
    write_mt160(tmp_path / "in", task, (5, 6, 7, 8))
    (first,) = import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    (second,) = import_datasets("minari", first.path, tmp_path / "other", [task])
    assert read_metadata(second.path)["m3dt_prompt_episodes"] == "[2, 3]"
    with pytest.raises(DatasetError, match="holds data of task 'push', not 'reach'"):
        import_datasets("minari", first.path, tmp_path / "other", ["reach"])


# -- which tasks, again, and on the command line -------------------------------------------------------------------------------
