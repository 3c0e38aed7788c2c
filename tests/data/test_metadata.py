"""Metadata that names another task, other bounds or another format is refused by name; nonsense in it is no traceback."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.episodes import read_episodes, validate_dataset
from m3dt_agent.data.kept import totals_from_metadata
from m3dt_agent.data.metadata import METADATA_FILE, STEPS_FILE, read_metadata
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.errors import DatasetError, PathError
from m3dt_agent.hub.convert_data import import_datasets

RECORDED, ASKED = tasks.get("cheetah-vel-22"), tasks.get("cheetah-vel-30")


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path / "root", RECORDED, (6, 8, 10))


def change_metadata(dataset: Path, **changes: Any) -> None:
    """Sets entries; None removes one."""
    file = dataset / METADATA_FILE
    metadata = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def validate(dataset: Path, root: Path) -> None:
    if problems := validate_dataset(dataset, ASKED):
        raise DatasetError("; ".join(problems))


def pack(dataset: Path, root: Path) -> None:
    pack_dataset(dataset, ASKED, cache=root)


def import_it(dataset: Path, root: Path) -> None:
    import_datasets("minari", dataset, root, [ASKED])


@pytest.mark.parametrize("use", [validate, pack, import_it])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "it holds data of task"),
        ({"m3dt_task": None, "m3dt_source": None}, "recorded in M3DT/cheetah-vel-22-v0: it holds data of task"),
    ],
    ids=["our metadata", "the env_spec alone"],
)
def test_data_of_another_task_are_refused_by_both_names(
    use: Callable[[Path, Path], None], changes: dict[str, Any], named: str, dataset: Path, tmp_path: Path
) -> None:
    change_metadata(dataset, **changes)
    with pytest.raises(DatasetError, match=f"{named} 'cheetah-vel-22', not 'cheetah-vel-30'"):
        use(dataset, tmp_path / "other")
    assert not [path for path in (tmp_path / "other").rglob("*") if path.name in ("main_data.hdf5", "steps.f32")]


@pytest.mark.parametrize("use", [validate, pack, import_it])
def test_action_bounds_that_are_not_one_are_refused_by_name(
    use: Callable[[Path, Path], None], tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    dataset = make_dataset(tmp_path / "root", ASKED, (6, 8, 10))
    space = {"type": "Box", "dtype": "float32", "shape": [6], "low": [-1.0] * 5 + [-2.0], "high": [1.0] * 5 + [2.0]}
    change_metadata(dataset, action_space=json.dumps(space))
    with pytest.raises(DatasetError, match=r"action_space declares actions in \[-2, 2\] where the task's are in \[-1, 1\]"):
        use(dataset, tmp_path / "other")


def test_data_of_a_foreign_environment_are_taken_with_a_word(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's environment says nothing about the task, and people bring their own data."""
    spec = json.loads(read_metadata(dataset)["env_spec"]) | {"id": "HalfCheetah-v5"}
    change_metadata(dataset, env_spec=json.dumps(spec), m3dt_task=None, m3dt_source=None)
    assert validate_dataset(dataset, ASKED) == []
    (made,) = import_datasets("minari", dataset, tmp_path / "other", [ASKED])
    assert "recorded in HalfCheetah-v5; it is taken for data of task cheetah-vel-30" in caplog.text
    assert read_metadata(made.path)["m3dt_recorded_in"] == "HalfCheetah-v5"


DEEP = "[" * 100_000 + "]" * 100_000
NONSENSE: dict[str, Any] = {
    "env_spec": [DEEP, "[1]", '{"id": 3}', 5, {"id": "M3DT/push-v0"}],
    "action_space": [DEEP, "3", '{"type": "Box", "shape": 4, "dtype": "float32"}', '{"low": "a", "high": []}', 7, ["Box"]],
    "observation_space": [DEEP, '{"type": "Box", "shape": [null], "dtype": []}', False],
    "m3dt_prompt_episodes": [DEEP, "[1e999]", "[-1]", "[true]", 3, json.dumps(list(range(200_000)))],
    "stop_after_success": [True, 1.5, -1, 10**18, "1", [1]],
    "m3dt_task": [3, ["reach"], {"a": 1}],
    "total_episodes": ["3", 3.5, [3], {"a": 1}],
    "data_format": [None, 3, ["hdf5"]],
}


def test_no_value_of_metadata_is_a_traceback(dataset: Path) -> None:
    original = (dataset / METADATA_FILE).read_text()
    for key, values in NONSENSE.items():
        for value in values:
            (dataset / METADATA_FILE).write_text(json.dumps(json.loads(original) | {key: value}))
            problems = validate_dataset(dataset, RECORDED)
            assert problems or key == "env_spec", (key, value)
            assert all(len(problem) < 1_000 for problem in problems)


@pytest.mark.parametrize(
    "text", [DEEP, "[1]", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1' + "0" * 5_000 + "}", "\xff", '{"a": "\\ud800"}']
)
def test_metadata_that_is_no_document_is_named(text: str, dataset: Path) -> None:
    (dataset / METADATA_FILE).write_bytes(text.encode("latin1"))
    for call in (lambda: read_metadata(dataset), lambda: pack_dataset(dataset, RECORDED), lambda: list(read_episodes(dataset))):
        with pytest.raises(DatasetError, match=r"metadata\.json is damaged or foreign"):
            call()


def test_metadata_of_gigabytes_are_not_read(dataset: Path) -> None:
    os.truncate(dataset / METADATA_FILE, 3_000_000_000)
    with pytest.raises(DatasetError, match="the most that is read"):
        read_metadata(dataset)


def test_an_arrow_dataset_is_named_with_the_way_out(dataset: Path) -> None:
    (dataset / STEPS_FILE).unlink()  # Arrow datasets have a folder for each episode
    change_metadata(dataset, data_format="arrow")
    with pytest.raises(
        DatasetError, match=r"data_format is 'arrow', and only 'hdf5' is read; write its episodes again as docs/data\.md"
    ):
        pack_dataset(dataset, RECORDED)
    assert "minari.load_dataset" in validate_dataset(dataset, RECORDED)[0]


def test_a_locked_file_is_called_locked(dataset: Path) -> None:
    with (dataset / STEPS_FILE).open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does while it writes
        (problem,) = validate_dataset(dataset, RECORDED)
    assert "main_data.hdf5 is locked: another program has it open for writing" in problem
    assert "HDF5_USE_FILE_LOCKING=FALSE" in problem
    assert validate_dataset(dataset, RECORDED) == []


def test_a_damaged_file_is_named_with_its_size(dataset: Path) -> None:
    (dataset / STEPS_FILE).write_bytes(b"\0" * 12_345)
    (problem,) = validate_dataset(dataset, RECORDED)
    assert "main_data.hdf5 (12,345 bytes) is not an HDF5 file, or is damaged or cut short" in problem


@pytest.mark.parametrize("key", ["m3dt_episodes", "m3dt_steps", "m3dt_mean_return"])
@pytest.mark.parametrize("value", [None, "3", [3], True])
def test_a_kept_dataset_whose_totals_are_no_numbers(key: str, value: Any) -> None:
    metadata = {"m3dt_episodes": 3, "m3dt_steps": 24, "m3dt_mean_return": 1.5} | {key: value}
    with pytest.raises(DatasetError, match=f"{key} = .*where its maker wrote a number; remove the dataset"):
        totals_from_metadata(metadata)


def test_a_collection_whose_scores_are_gone_is_named(tmp_path: Path) -> None:
    (made,) = collect([ASKED], tmp_path, CollectConfig(episodes=1), workers=0)
    change_metadata(made.path, m3dt_mean_normalized_score="high")
    with pytest.raises(DatasetError, match="m3dt_mean_normalized_score = 'high'"):
        collect([ASKED], tmp_path, CollectConfig(episodes=1), workers=0)


def test_what_lies_in_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathError, match="a file where a folder should be"):
        collect([ASKED], tmp_path / "file", CollectConfig(episodes=1), workers=0)
    with pytest.raises(DatasetError, match="not a whole dataset"):
        pack_dataset(tmp_path / "file", ASKED)


BEYOND = {"rewards": 1e38, "observations": -2e10}


@pytest.mark.parametrize("name", BEYOND)
def test_numbers_whose_sums_leave_float32_are_refused(name: str, dataset: Path, tmp_path: Path) -> None:
    with h5py.File(dataset / STEPS_FILE, "r+") as file:
        file[f"episode_1/{name}"][3] = np.float32(BEYOND[name])
    message = f"step 3: {name} holds .*; the largest that is taken is 1e\\+10"
    with pytest.raises(DatasetError, match=message):
        pack_dataset(dataset, RECORDED)
    with pytest.raises(DatasetError, match=message):
        import_datasets("minari", dataset, tmp_path / "other", [RECORDED])
    assert not list(tmp_path.glob("other/m3dt/*/*"))
