"""Every way a dataset can be bad is reported, with the episode and step, and refused by packing."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.episodes import Episode, read_episodes, validate_dataset, write_dataset
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.errors import DatasetError

MakeDataset = Callable[..., Path]
TASK = tasks.get("reach")
LENGTHS = (6, 8, 10)


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    return make_dataset(tmp_path, TASK, LENGTHS)


def replace(field: str, change: Callable[[Any], Any]) -> Callable[[h5py.File], None]:
    """Rewrites a field of episode 1, as Minari would store what `change` returns."""

    def edit(file: h5py.File) -> None:
        values = change(file["episode_1"][field][()])
        del file["episode_1"][field]
        file["episode_1"][field] = values

    return edit


def put(field: str, step: int, value: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["episode_1"][field][step] = value

    return edit


def drop(name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]

    return edit


def empty_episode(file: h5py.File) -> None:
    for field in ("observations", "actions", "rewards", "terminations", "truncations"):
        file["episode_1"][field].resize(1 if field == "observations" else 0, axis=0)


HDF5_PROBLEMS = {
    "missing final observation": (
        replace("observations", lambda x: x[:-1]),
        "episode 1, step 8: the final observation is missing",
    ),
    "observation missing in between": (
        replace("observations", lambda x: x[:-3]),
        r"episode 1: observations is (6, 39); it must be (9, 39)",
    ),
    "NaN observation": (put("observations", 5, np.nan), "episode 1, step 5: observations holds NaN"),
    "infinite final observation": (put("observations", 8, np.inf), "episode 1, step 8: observations holds an infinity"),
    "NaN action": (put("actions", 2, np.nan), "episode 1, step 2: actions holds NaN"),
    "infinite reward": (put("rewards", 7, -np.inf), "episode 1, step 7: rewards holds an infinity"),
    "action outside its space": (put("actions", 3, 7.7), "episode 1, step 3: actions leave [-1, 1]"),
    "float64 observations": (replace("observations", lambda x: x.astype(np.float64)), "episode 1: observations is float64"),
    "float64 actions": (replace("actions", lambda x: x.astype(np.float64)), "episode 1: actions is float64"),
    "float64 rewards": (replace("rewards", lambda x: x.astype(np.float64)), "episode 1: rewards is float64"),
    "wide observations": (replace("observations", lambda x: np.c_[x, x[:, :1]]), "episode 1: observations is (9, 40)"),
    "narrow actions": (replace("actions", lambda x: x[:, :3]), "episode 1: actions is (8, 3); it must be (8, 4)"),
    "flat actions": (replace("actions", lambda x: x[:, 0]), "episode 1: actions is (8,); it must be (8, 4)"),
    "rewards empty": (replace("rewards", lambda x: x[:0]), "episode 1: rewards is (0,); it must be (8,)"),
    "rewards too short": (replace("rewards", lambda x: x[:-1]), "episode 1: rewards is (7,); it must be (8,)"),
    "success too short": (replace("infos/success", lambda x: x[:3]), "episode 1: infos/success is (3,)"),
    "terminated in between": (put("terminations", 3, True), "episode 1, step 3: it is terminated or truncated here"),
    "integer flags": (replace("truncations", lambda x: x.astype(np.int64)), "episode 1: truncations is int64"),
    "text": (replace("actions", lambda x: "none"), "episode 1: actions is"),
    "longer than the task": (
        replace("rewards", lambda x: np.zeros(100_000, np.float32)),
        "episode 1: rewards has 100000 entries; the task ends after 500 steps",
    ),
    "no steps": (empty_episode, "episode 1: it has no steps"),
    "no rewards": (drop("episode_1/rewards"), "episode 1: rewards is missing"),
    "a missing episode": (drop("episode_1"), "missing or unknown: episode_1, episode_2"),
    "no episodes": (lambda file: file.clear(), "it holds no episodes"),
    "an extra episode": (lambda file: file.copy("episode_1", "episode_3"), "it was not written to the end, or changed later"),
}


LABELS = "infos/demonstrator_action"
LABEL_PROBLEMS = {
    "missing": (drop(f"episode_1/{LABELS}"), f"episode 1: {LABELS} is missing"),
    "narrow": (replace(LABELS, lambda x: x[:, :3]), f"episode 1: {LABELS} is (9, 3); it must be (9, 4) or (8, 4)"),
    "too short": (replace(LABELS, lambda x: x[:3]), f"episode 1: {LABELS} is (3, 4); it must be (9, 4) or (8, 4)"),
    "float64": (replace(LABELS, lambda x: x.astype(np.float64)), "episode 1: demonstrator_actions is float64"),
    "NaN": (put(LABELS, 3, np.nan), "episode 1, step 2: demonstrator_actions holds NaN"),  # the first is of the reset
    "outside the space": (put(LABELS, 8, -2.0), "episode 1, step 7: demonstrator_actions leave [-1, 1]"),
}


@pytest.mark.parametrize("name", LABEL_PROBLEMS)
def test_bad_labels(tmp_path: Path, make_episode: Callable[..., Episode], name: str) -> None:
    episodes = (make_episode(TASK, length, i) for i, length in enumerate(LENGTHS))
    labelled = (dataclasses.replace(episode, demonstrator_actions=-episode.actions) for episode in episodes)
    dataset = write_dataset(tmp_path, TASK, "labelled", labelled, metadata={})
    assert validate_dataset(dataset, TASK) == []
    edit, expected = LABEL_PROBLEMS[name]
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        edit(file)
    assert [problem for problem in validate_dataset(dataset, TASK) if expected in problem], validate_dataset(dataset, TASK)
    with pytest.raises(DatasetError, match=re.escape(expected)):
        pack_dataset(dataset, TASK)


def test_labels_of_a_dataset_that_is_not_marked_are_not_read(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    """An array of that name in others' data may mean anything."""
    dataset = write_dataset(tmp_path, TASK, "others", [make_episode(TASK, 6, i) for i in range(3)], metadata={})
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        file["episode_1"]["infos"]["demonstrator_action"] = np.full(3, np.nan)
    assert validate_dataset(dataset, TASK) == []
    assert [episode.demonstrator_actions for episode in read_episodes(dataset)] == [None] * 3


def test_all_episodes_have_labels_or_none(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    first, second = (make_episode(TASK, 6, i) for i in range(2))
    mixed = [dataclasses.replace(first, demonstrator_actions=first.actions), second]
    with pytest.raises(DatasetError, match=r"episode 1: all episodes have demonstrator_actions, or none has"):
        write_dataset(tmp_path, TASK, "mixed", mixed, metadata={})


@pytest.mark.parametrize("name", HDF5_PROBLEMS)
def test_bad_arrays(dataset: Path, name: str) -> None:
    edit, expected = HDF5_PROBLEMS[name]
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        edit(file)
    assert any(expected in problem for problem in validate_dataset(dataset, TASK)), validate_dataset(dataset, TASK)
    with pytest.raises(DatasetError) as refused:
        pack_dataset(dataset, TASK)
    assert expected in str(refused.value)
    assert str(dataset) in str(refused.value)
    assert not list(dataset.parents[2].glob(".packed/*/*-????????????????"))


METADATA_PROBLEMS = {
    "no observation space": ({"observation_space": None}, "observation_space is missing"),
    "no action space": ({"action_space": None}, "action_space is missing"),
    "float64 space": ({"action_space": '{"type": "Box", "shape": [4], "dtype": "float64"}'}, "action_space is Box(4,) float64"),
    "wide space": (
        {"observation_space": '{"type": "Box", "shape": [40], "dtype": "float32"}'},
        "the task's is Box(39,) float32",
    ),
    "a mark that is no truth value": ({"m3dt_labelled": "yes"}, "m3dt_labelled is 'yes'; it must be true or false"),
    "space that is none": ({"observation_space": "cos.system('ls')"}, "observation_space in the metadata is not a Box"),
    "another task's": ({"m3dt_task": "push"}, "it holds data of task 'push', not 'reach'"),
    "another format": ({"data_format": "arrow"}, "data_format is 'arrow'"),
    "bad mark": ({"stop_after_success": "yes"}, "stop_after_success is 'yes'"),
    "prompts that are no list": ({"m3dt_prompt_episodes": "2"}, "m3dt_prompt_episodes is '2'; it must be a JSON list"),
    "prompts that are not JSON": ({"m3dt_prompt_episodes": [0, 1]}, "m3dt_prompt_episodes is [0, 1]; it must be a JSON list"),
    "no prompts": ({"m3dt_prompt_episodes": "[]"}, "m3dt_prompt_episodes is '[]'"),
    "a prompt named twice": ({"m3dt_prompt_episodes": "[1, 1]"}, "m3dt_prompt_episodes is '[1, 1]'"),
    "prompts that are not there": ({"m3dt_prompt_episodes": "[2, 3]"}, "m3dt_prompt_episodes names episode 3; the last is 2"),
    "killed while writing": (
        {"total_episodes": 0, "total_steps": 0},
        "the metadata counts 0 episodes and 0 steps, the file holds 3 and 24",
    ),
}


@pytest.mark.parametrize("name", METADATA_PROBLEMS)
def test_bad_metadata(dataset: Path, name: str) -> None:
    changes, expected = METADATA_PROBLEMS[name]
    file = dataset / "data" / "metadata.json"
    metadata = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))
    assert any(expected in problem for problem in validate_dataset(dataset, TASK)), validate_dataset(dataset, TASK)
    with pytest.raises(DatasetError) as refused:
        pack_dataset(dataset, TASK)
    assert expected in str(refused.value)


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage"])
def test_damaged_files(dataset: Path, name: str, damage: str) -> None:
    file = dataset / "data" / name
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes({"empty": b"", "cut": content[: len(content) * 2 // 3], "garbage": b"\x93NUMPY" * 100}[damage])
    problems = validate_dataset(dataset, TASK)
    assert len(problems) == 1
    assert name in problems[0]
    with pytest.raises(DatasetError, match=name):
        pack_dataset(dataset, TASK)
    with pytest.raises(DatasetError, match=name):
        list(read_episodes(dataset))


def test_every_problem_is_listed(dataset: Path) -> None:
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        for i, length in enumerate(LENGTHS):
            file[f"episode_{i}"]["actions"][length - 1] = np.nan
            file[f"episode_{i}"]["rewards"][0] = np.inf
    problems = validate_dataset(dataset, TASK)
    assert [problem.split(":")[0] for problem in problems] == [
        f"episode {i}, step {step}" for i, length in enumerate(LENGTHS) for step in (length - 1, 0)
    ]


def test_success_without_the_reset_counts_too(dataset: Path) -> None:
    """Minari's collector stores the reset's info first; other writers do not."""
    before = [episode.success for episode in read_episodes(dataset)]
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        replace("infos/success", lambda x: x[1:])(file)
    assert validate_dataset(dataset, TASK) == []
    after = [episode.success for episode in read_episodes(dataset)]
    for expected, found in zip(before, after, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_float64_is_converted_when_read(dataset: Path) -> None:
    before = list(read_episodes(dataset))
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        replace("observations", lambda x: x.astype(np.float64))(file)
    after = list(read_episodes(dataset))
    assert after[1].observations.dtype == np.float32
    np.testing.assert_array_equal(after[1].observations, before[1].observations)
