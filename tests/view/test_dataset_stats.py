"""What is counted of a dataset, against its arrays; damage and unknown tasks are said, not raised."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from pages import HOSTILE, HOSTILE_NAME

from m3dt_agent.data.episodes import read_episodes
from m3dt_agent.view.dataset_stats import demonstrator, find_datasets, read_stats, stored_episode


def test_numbers_are_those_of_the_arrays(root: Path) -> None:
    path = root / "m3dt" / "cheetah-vel-25" / "mixed-v0"
    stats, episodes = read_stats("cheetah-vel-25", "mixed", path), list(read_episodes(path))
    assert stats.returns.tolist() == [-10.0, -33.0, -24.0]
    assert stats.lengths.tolist() == [10, 11, 12]
    assert (stats.success, stats.problems, stats.demonstrator) == (None, (), "expert 75%, random 25%")
    assert stats.clipped == pytest.approx((5 + 5 + 6) / (33 * 6))
    for ranges, name in ((stats.actions, "actions"), (stats.observations, "observations")):
        rows = np.concatenate([getattr(episode, name) for episode in episodes]).astype(np.float64)
        assert ranges is not None
        np.testing.assert_allclose([ranges.low, ranges.high], [rows.min(0), rows.max(0)])
        np.testing.assert_allclose([ranges.mean, ranges.deviation], [rows.mean(0), rows.std(0)])
    assert stats.scores is not None
    assert stats.scores[0] == pytest.approx(100.0)
    actions, rewards, seed = stored_episode(path, 2)
    np.testing.assert_array_equal(actions, episodes[2].actions)
    assert (rewards.tolist(), seed) == ([-2.0] * 12, 2)


def test_success_is_what_an_episode_ended_with(root: Path) -> None:
    stats = read_stats("reach", "expert", root / "m3dt" / "reach" / "expert-v0")
    assert stats.success is not None
    assert stats.success.tolist() == [True, False, True]
    assert stats.scores is not None
    assert stats.scores.tolist() == [100.0, 0.0, 100.0]


def test_known_tasks_come_first_and_unknown_ones_are_read_too(root: Path) -> None:
    found = find_datasets(root)
    assert [task for task, _, _ in found] == ["reach", "cheetah-vel-25", HOSTILE_NAME]
    stats = read_stats(*found[-1])
    assert (stats.spec, stats.scores, stats.returns.tolist()) == (None, None, [10.0, 22.0])
    assert stats.demonstrator == f"{HOSTILE} 100%"
    assert stats.problems == ("the task is not known here: m3dt --tasks FILE view … registers it",)


def test_episodes_with_problems_are_left_out_and_counted(root: Path, tmp_path: Path) -> None:
    path = shutil.copytree(root / "m3dt" / "cheetah-vel-25" / "mixed-v0", tmp_path / "mixed-v0")
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/rewards"][3] = np.nan
        del file["episode_2/actions"]
    for task in ("cheetah-vel-25", "nobody-knows"):
        stats = read_stats(task, "mixed", path)
        assert stats.indices.tolist() == [0]
        assert "episode 1, step 3: rewards holds NaN (such steps: 1 of 11)" in stats.problems
        assert "episode 2: actions is missing" in stats.problems


@pytest.mark.parametrize("damage", ["metadata.json", "main_data.hdf5"])
def test_a_damaged_dataset_has_no_episodes_and_says_why(root: Path, tmp_path: Path, damage: str) -> None:
    path = shutil.copytree(root / "m3dt" / "reach" / "expert-v0", tmp_path / "expert-v0")
    (path / "data" / damage).write_text("{")
    stats = read_stats("reach", "expert", path)
    assert (len(stats.returns), stats.clipped, stats.actions) == (0, None, None)
    assert damage in stats.problems[0]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"m3dt_policy": '{"expert": 1.0}'}, "expert 100%"),
        ({"m3dt_import": '{"format": "mt160", "original": "reach-v2"}'}, "imported: mt160, reach-v2"),
        ({"m3dt_policy": "["}, None),
        ({"m3dt_policy": 3, "m3dt_import": "[1]"}, None),
    ],
)
def test_who_demonstrated(metadata: dict[str, object], said: str | None) -> None:
    assert demonstrator(metadata) == said
