"""TD-MPC2: what is imported, and problems that are named by file, episode and step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_writers import (
    assert_holds,
    save_tensordict,
    tdmpc2_tensors,
    trajectory,
)

from m3dt_agent import tasks
from m3dt_agent.data.episodes import read_episodes, read_metadata
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.published.tdmpc2 import find_tdmpc2


def test_tdmpc2_of_several_files(tmp_path: Path) -> None:
    hopper, pendulum = tasks.get("hopper-stand"), tasks.get("pendulum-spin")
    of = {17: hopper, 29: pendulum}
    written: dict[int, list[dict[str, np.ndarray]]] = {17: [], 29: []}
    for name, order in {"chunk_0": (17, 17, 29), "chunk_2": (29,), "chunk_10": (29, 17, 29, 17)}.items():
        episodes = [(i, trajectory(of[i], 500, 10 * len(name) + k + order[0])) for k, i in enumerate(order)]
        save_tensordict(tmp_path / "in" / f"{name}.pt", tdmpc2_tensors(episodes))
        for i, one in episodes:
            written[i].append(one)
    stand, spin = import_datasets("tdmpc2", tmp_path / "in", tmp_path, source="tdmpc2")
    assert (stand.task, spin.task) == (hopper, pendulum)
    for summary, i in ((stand, 17), (spin, 29)):
        read = assert_holds(summary.path, written[i])
        assert all(episode.truncations[-1] and not episode.terminations.any() for episode in read)
        assert summary.steps == 2000
    assert read_metadata(stand.path)["m3dt_original"] == "chunk_0.pt, chunk_10.pt, task 17"
    data = TaskDatasets.open(tmp_path, [hopper, pendulum])
    assert data.packed[0].prompt_episodes is None
    one_file = import_datasets("tdmpc2", tmp_path / "in" / "chunk_2.pt", tmp_path / "one", [pendulum])
    assert_holds(one_file[0].path, written[29][1:2])


@pytest.mark.parametrize("version", ["0.2.1", "0.9.1"])
def test_files_of_real_tensordicts(tmp_path: Path, golden: Path, version: str) -> None:
    """See tests/golden/make_tensordicts.py for the numbers."""
    summaries = import_datasets("tdmpc2", golden / f"tdmpc2_tensordict_{version}.pt", tmp_path)
    assert "tensordict" not in sys.modules
    of_task = {summary.task.name: list(read_episodes(summary.path)) for summary in summaries}
    assert {name: len(read) for name, read in of_task.items()} == {"reacher-easy": 1, "pendulum-swingup": 2}
    for episode, e in zip((*of_task["pendulum-swingup"], *of_task["reacher-easy"]), (0, 2, 1), strict=True):
        t, d = np.arange(4)[:, None], np.arange(6)
        numbers = e + t / 10 + d / 100
        width, n_actions = episode.observations.shape[1], episode.actions.shape[1]
        np.testing.assert_allclose(episode.observations, numbers[:, :width], rtol=1e-6)
        np.testing.assert_allclose(episode.actions, numbers[1:, :n_actions] / 10, rtol=1e-6)
        np.testing.assert_allclose(episode.rewards, numbers[1:, 0], rtol=1e-6)


def test_the_first_2000_episodes_of_a_task_count(tmp_path: Path) -> None:
    task = tasks.get("pendulum-swingup")
    for chunk in range(2):
        episodes = [(7, trajectory(task, 2, chunk * 1200 + i)) for i in range(1200)]
        save_tensordict(tmp_path / f"chunk_{chunk}.pt", tdmpc2_tensors(episodes))
    found = find_tdmpc2(tmp_path, None).open[task.name]()
    read = list(found.read())
    assert len(read) == found.n_episodes == 2000
    expected = trajectory(task, 2, 1999)
    np.testing.assert_array_equal(read[-1].episode.rewards, expected["rewards"].astype(np.float32))


def expanded(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1).expand(*shape)


TENSOR_PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN in the middle": ({"reward": (1, 3, np.nan)}, r"chunk\.pt, episode 1, step 2: rewards holds NaN"),
    "no NaN first": ({"reward": (1, 0, 0.0)}, r"chunk\.pt, episode 1, row 0: action and reward must be NaN there"),
    "another task's": ({"obs": (1, 2, 20, 0.5)}, r"chunk\.pt, episode 1, step 2: obs holds 0\.5 in column 20"),
    "two tasks in one": ({"task": (1, 3, 4)}, r"chunk\.pt, episode 1, row 3: task 4 in an episode of task 7"),
    "unknown task": ({"task": (1, 0, 30)}, r"chunk\.pt, episode 1: task 30; valid: 0 … 29"),
    "narrow": ({"obs": torch.zeros(3, 6, 2)}, r"chunk\.pt, episode 0: obs is \(6, 2\); it must be 3 wide or wider"),
    "other rows": ({"action": torch.zeros(3, 5, 6)}, r"chunk\.pt: tensors must be \(episodes, rows, …\).*action \(3, 5, 6\)"),
    "other episodes": ({"reward": torch.zeros(2, 6)}, r"chunk\.pt: tensors must be .*reward \(2, 6\)"),
    "no episodes": (
        {"obs": torch.zeros(0, 6, 3), "action": torch.zeros(0, 6, 1), "reward": torch.zeros(0, 6), "task": torch.zeros(0, 6)},
        r"chunk\.pt: tensors must be",
    ),
    "task in floats": ({"task": torch.full((3, 6), 7.0)}, r"chunk\.pt: task must hold integers.*task is torch\.float32"),
    "complex": (
        {"reward": torch.zeros(3, 6, dtype=torch.complex64)},
        r"chunk\.pt: task must hold integers and the others real",
    ),
    "a bomb": (
        {"obs": expanded((3, 6, 1_000_000_000))},
        r"chunk\.pt: 'obs' is not a plain tensor whose numbers are all in the",
    ),
    "sparse": ({"reward": torch.zeros(3, 6).to_sparse()}, r"chunk\.pt: 'reward' is not a plain tensor"),
}


@pytest.mark.parametrize("name", TENSOR_PROBLEMS)
def test_what_is_wrong_with_a_tensordict_is_named(tmp_path: Path, name: str) -> None:
    changes, message = TENSOR_PROBLEMS[name]
    tensors = tdmpc2_tensors([(7, trajectory(tasks.get("pendulum-swingup"), 5, i)) for i in range(3)])
    for key, edit in changes.items():
        if isinstance(edit, tuple):
            tensors[key][edit[:-1]] = edit[-1]
        else:
            tensors[key] = edit
    save_tensordict(tmp_path / "in" / "chunk.pt", tensors)
    with pytest.raises(DatasetError, match=message):
        import_datasets("tdmpc2", tmp_path / "in", tmp_path / "root")
    assert not list(tmp_path.glob("root/*"))


def test_missing_tensors_and_damaged_files(tmp_path: Path, golden: Path) -> None:
    file = tmp_path / "chunk.pt"
    whole = (golden / "tdmpc2_tensordict_0.9.1.pt").read_bytes()
    for content in (b"", whole[:1000], whole[:-20], b"\x80\x02}q\x00."):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=r"chunk\.pt cannot be read: "):
            import_datasets("tdmpc2", file, tmp_path / "root")
    torch.save({"obs": torch.zeros(2)}, file)
    with pytest.raises(DatasetError, match=r"chunk\.pt holds a dict, not a TensorDict"):
        import_datasets("tdmpc2", file, tmp_path / "root")
