"""LeRobot folders in both layouts: imported, described, and refused where they are damaged.

LeRobot itself cannot be installed beside this package's torch. The folders in golden/ were written by it
(golden/make_lerobot.py), one by each layout's last version; the others are written here in the documented layout.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_frames import FEATURES, LENGTHS, frames

from m3dt_agent import tasks
from m3dt_agent.data.episodes import read_episodes, read_metadata, validate_dataset
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.published.lerobot import spec_of_lerobot
from m3dt_agent.tasks import TaskSpec

pytestmark = pytest.mark.usefixtures("own_registry")

ARM = TaskSpec(
    "own-arm",
    "robots",
    obs_dim=6,
    act_dim=2,
    max_episode_steps=7,
    return_scale=10.0,
    score="success",
    action_low=(-4.0, 0.0),
    action_high=(4.0, 2.0),
)


def write(folder: Path, version: str, changes: dict[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Path:
    """A LeRobot folder. changes: of info.json. drop: features that it lacks."""
    features = {name: feature for name, feature in FEATURES.items() if name not in drop}
    info = {"codebase_version": version, "total_episodes": 3, "total_frames": 16, "fps": 10, "features": features}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | (changes or {})))
    tables = [
        pa.table(
            {
                name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
                if values.ndim == 2
                else pa.array(values)
                for name, values in columns.items()
                if name not in drop
            }
        )
        for columns in frames()
    ]
    chunk = folder / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    if version == "v2.1":
        for index, table in enumerate(tables):
            pq.write_table(table, chunk / f"episode_{index:06d}.parquet")
    else:  # files and row groups end anywhere
        whole = pa.concat_tables(tables)
        pq.write_table(whole.slice(0, 9), chunk / "file-000.parquet", row_group_size=4)
        pq.write_table(whole.slice(9), chunk / "file-001.parquet", row_group_size=4)
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_episodes_are_imported(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "arm", version)
    (summary,) = import_datasets("lerobot", path, tmp_path / "root", [ARM])
    assert (summary.episodes, summary.steps, summary.clipped_actions) == (3, 16, 0)
    assert validate_dataset(summary.path, ARM) == []
    for episode, columns in zip(read_episodes(summary.path), frames(), strict=True):
        seen = columns["observation.state"]
        np.testing.assert_array_equal(episode.observations, np.concatenate([seen, seen[-1:]]))
        np.testing.assert_allclose(episode.actions, columns["action"] / [4, 1] - [0, 1], atol=1e-6)
        np.testing.assert_array_equal(episode.rewards, columns["next.reward"])
        np.testing.assert_array_equal(episode.success, columns["next.success"])
        assert episode.truncations[-1] == (episode.length == 7)
        assert episode.terminations[-1] == (episode.length < 7)
    assert read_metadata(summary.path)["m3dt_final_observation"] == "repeated"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_lerobot_itself_wrote_is_imported(tmp_path: Path, golden: Path, version: str) -> None:
    path = golden / f"lerobot-{version}"
    (summary,) = import_datasets("lerobot", path, tmp_path / "root", [ARM])
    assert (summary.episodes, summary.steps) == (len(LENGTHS), sum(LENGTHS))
    for episode, columns in zip(read_episodes(summary.path), frames(), strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], columns["observation.state"])
        np.testing.assert_allclose(episode.actions, columns["action"] / [4, 1] - [0, 1], atol=1e-6)
        np.testing.assert_array_equal(episode.rewards, columns["next.reward"])
        np.testing.assert_array_equal(episode.success, columns["next.success"])
    assert spec_of_lerobot(path, name="own-arm", score="success").max_episode_steps == max(LENGTHS)


@pytest.mark.slow  # tests/bank trains on tasks of one's own
def test_what_lerobot_itself_wrote_is_trained_on(tmp_path: Path, golden: Path, run: Any) -> None:
    file = tmp_path / "own.toml"
    given = ("--root", tmp_path / "root")
    for version in ("v2.1", "v3.0"):
        name, path = f"arm-{version[1]}", golden / f"lerobot-{version}"
        code, _, err = run("data", "task", path, name, "--score", "success", "--to", file)
        assert code == 0, err
        code, _, err = run("--tasks", file, "data", "import", "lerobot", path, name, *given)
        assert code == 0, err
    training = ("--preset", "tiny", "--steps", 20, "--bank", tmp_path / "bank")
    code, _, err = run("--tasks", file, "train", "arm-2", "arm-3", *given, *training)
    assert code == 0, err


def test_without_rewards_all_are_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "arm", "v3.0", drop=("next.reward", "next.done", "next.success"))
    (summary,) = import_datasets(
        "lerobot", path, tmp_path / "root", [dataclasses.replace(ARM, score="return", has_success=False)]
    )
    assert summary.mean_return == 0.0
    assert "the agent can only imitate" in caplog.text
    assert read_metadata(summary.path)["m3dt_rewards"] == "none"


def test_a_spec_is_read_from_the_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "arm", "v3.0")
    spec = spec_of_lerobot(path, name="own-arm", domain="robots", score="success")
    actions = np.concatenate([columns["action"] for columns in frames()])
    np.testing.assert_allclose(spec.action_bounds, [actions.min(0), actions.max(0)])
    assert dataclasses.replace(spec, return_scale=10.0, action_low=ARM.action_low, action_high=ARM.action_high) == ARM
    tasks.register(spec)
    (summary,) = import_datasets("lerobot", path, tmp_path / "root", [spec])
    assert summary.clipped_actions == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, r"'v1\.6'; v2\.1 and v3\.0 are read"),
        ({"features": {}}, "no feature 'observation.state'"),
        ({"features": [1]}, "features is damaged or foreign: it must be an object"),
        ({"features": FEATURES | {"action": {"dtype": "float32", "shape": [10**9]}}}, "has shape"),
        ({"features": FEATURES | {"action": {"dtype": "float32", "shape": [3]}}}, "action has 3 numbers; act_dim is 2"),
        ({"features": FEATURES | {"next.reward": {"dtype": "float32", "shape": [2]}}}, "says 2 in each"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "arm", "v2.1", changes)
    with pytest.raises(DatasetError, match=message):
        import_datasets("lerobot", path, tmp_path / "root", [ARM])


def test_damaged_files_and_episodes_out_of_order_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "arm", "v2.1")
    first, second, _ = sorted(path.glob("data/chunk-000/*.parquet"))
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet \(.* bytes\) is not a parquet file, or is damaged"):
        import_datasets("lerobot", path, tmp_path / "root", [ARM])
    second.write_bytes(first.read_bytes())
    third = pq.read_table(first).set_column(5, "episode_index", pa.array(np.full(5, 7)))
    pq.write_table(third, second)
    with pytest.raises(DatasetError, match="episode 7 follows episode 0"):
        import_datasets("lerobot", path, tmp_path / "root", [ARM])
    assert not list((tmp_path / "root").glob("m3dt/**/*.hdf5"))
    with pytest.raises(ConfigError, match="exactly one task"):
        import_datasets("lerobot", path, tmp_path / "root")
    with pytest.raises(DatasetError, match="cannot be imported: task 'own-arm' has success"):
        import_datasets("lerobot", write(tmp_path / "b", "v3.0", drop=("next.success",)), tmp_path / "root", [ARM])
