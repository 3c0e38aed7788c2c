"""MT160: what is imported, and problems that are named by file and step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from published_writers import (
    assert_holds,
    change,
    write_mt160,
)

from m3dt_agent import tasks
from m3dt_agent.data.episodes import read_metadata, validate_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.convert_data import import_datasets


def test_mt160(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    chosen = tasks.resolve(["push", "reacher-easy", "ant-dir-3"])
    written = {task.name: write_mt160(tmp_path / "in", task, (7, task.max_episode_steps, 12, 1, 9), 7.7) for task in chosen}
    root = tmp_path / "root"
    summaries = import_datasets("mt160", tmp_path / "in", root)
    assert [summary.task for summary in summaries] == list(chosen)
    for summary in summaries:
        episodes = written[summary.task.name]
        read = assert_holds(summary.path, episodes)
        assert validate_dataset(summary.path, summary.task) == []
        assert [bool(episode.truncations[-1]) for episode in read] == [False, True, False, False, False]
        assert [bool(episode.terminations[-1]) for episode in read] == [True, False, True, True, True]
        assert all(episode.success is None for episode in read)
        assert (summary.episodes, summary.steps, summary.kept) == (5, 29 + summary.task.max_episode_steps, False)
        assert summary.mean_return == pytest.approx(np.mean([one["rewards"].sum() for one in episodes]), rel=1e-5)
        assert summary.clipped_actions == sum((np.abs(one["actions"]) > 1).any(axis=1).sum() for one in episodes)
        metadata = read_metadata(summary.path)
        assert (metadata["m3dt_format"], metadata["m3dt_original"]) == ("mt160", summary.task.published_name)
        assert (metadata["m3dt_final_observation"], metadata["m3dt_prompt_episodes"]) == ("repeated", "[3, 4]")
        assert metadata["m3dt_clipped_actions"] == summary.clipped_actions
    data = TaskDatasets.open(root, chosen)
    for i, task in enumerate(chosen):
        returns = [one["rewards"].sum() for one in written[task.name]]
        assert data.prompt_episodes(i) == sorted([3, 4], key=lambda e: -returns[e])
        assert data.train_episodes(i) == [0, 1, 2]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert sorted(minari.list_local_datasets()) == sorted(f"m3dt/{task.name}/published-v0" for task in chosen)
    for task in chosen:
        loaded = minari.load_dataset(f"m3dt/{task.name}/published-v0")
        assert [len(episode.actions) for episode in loaded] == [7, task.max_episode_steps, 12, 1, 9]
        assert loaded.env_spec.id == task.env_id


def put(step: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[(step, column) if values.ndim == 2 else step] = value
        return values

    return edit


NPZ_WIDTHS: dict[str, tuple[int, ...]] = {"observations": (39,), "actions": (8,), "rewards": (), "dones": (1,)}
NPZ_PROBLEMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN": (change("observations", put(3, 5, np.nan)), r"1\.npz, step 3: observations holds NaN"),
    "infinite action": (change("actions", put(4, 1, np.inf)), r"1\.npz, step 4: actions holds an infinity"),
    "beyond float32": (change("rewards", put(2, 0, 1e300)), r"1\.npz, step 2: rewards holds an infinity"),
    "another task's observations": (
        change("observations", put(2, 30, 0.5)),
        r"1\.npz, step 2: observations holds 0\.5 in column 30; the task's are 24 wide",
    ),
    "another task's actions": (change("actions", put(6, 7, -1)), r"1\.npz, step 6: actions holds -1\.0 in column 7"),
    "NaN in the padding": (change("actions", put(6, 7, np.nan)), r"1\.npz, step 6: actions holds nan in column 7"),
    "narrow observations": (change("observations", lambda x: x[:, :24]), r"1\.npz: observations is \(9, 24\); .* \(9, 39\)"),
    "wide actions": (change("actions", lambda x: np.c_[x, x]), r"1\.npz: actions is \(9, 16\); it must be \(9, 8\)"),
    "flat actions": (change("actions", lambda x: x[:, 0]), r"1\.npz: actions is \(9,\); it must be \(9, 8\)"),
    "scalar actions": (change("actions", lambda x: x[0, 0]), r"1\.npz: .*must be \(0, "),
    "one reward": (change("rewards", lambda x: x[0, 0]), r"1\.npz: rewards is a single number"),
    "no rewards": (change("rewards", lambda x: x[:0]), r"1\.npz: rewards is \(0,\); it must be \(9,\)"),
    "short rewards": (change("rewards", lambda x: x[:-2]), r"1\.npz: rewards is \(7,\); it must be \(9,\)"),
    "short dones": (change("dones", lambda x: x[:-1]), r"1\.npz: the flags of its end are \(8,\); they must be \(9,\)"),
    "done before the end": (change("dones", put(4, 0, 1.0)), r"1\.npz, step 4: it is done here, but goes on to step 8"),
    "no observations": (change("observations", lambda x: None), r"1\.npz: observations missing; it has actions, dones, rew"),
    "no dones": (change("dones", lambda x: None), r"1\.npz: terminals missing"),
    "text": (change("timesteps", lambda x: np.array(["a"])), r"1\.npz cannot be read: timesteps is <U1, not an array of numb"),
    "objects": (change("timesteps", lambda x: np.array([None])), r"1\.npz cannot be read: timesteps is object, not an arr"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:900]), r"1\.npz cannot be read: "),
    "empty": (lambda file: file.write_bytes(b""), r"1\.npz cannot be read: "),
    "one array": (lambda file: np.save(file.open("wb"), np.zeros(3)), r"1\.npz cannot be read: it holds one array"),
    "a bomb": (change("timesteps", lambda x: np.zeros(10_000_000)), r"1\.npz cannot be read: it unpacks to 80 MB"),
    "too long": (
        lambda file: np.savez(file, **{k: np.zeros((501, *w)) for k, w in NPZ_WIDTHS.items()}),
        r"1\.npz: it has 501 steps; the task ends after 500",
    ),
    "a gap": (lambda file: file.unlink(), r"walker-run: episodes must be 0\.npz … 2\.npz; missing or unknown: 1\.npz, 3\.npz"),
    "another name": (lambda file: shutil.copy(file, file.with_name("best.npz")), r"missing or unknown: 4\.npz, best\.npz"),
    "flipped bits": (
        lambda file: file.write_bytes(file.read_bytes().replace(file.read_bytes()[500:520], b"\x01" * 20)),
        r"1\.npz cannot be read: Bad CRC-32",
    ),
}


@pytest.mark.parametrize("name", NPZ_PROBLEMS)
def test_what_is_wrong_with_an_npz_is_named_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    damage, message = NPZ_PROBLEMS[name]
    write_mt160(tmp_path / "in", tasks.get("walker-run"), (4, 9, 5, 6))
    damage(tmp_path / "in" / "walker-run" / "1.npz")
    with pytest.raises(DatasetError, match=message):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    assert not list(tmp_path.glob("root/*"))


def test_too_few_files_for_prompts(tmp_path: Path) -> None:
    write_mt160(tmp_path / "in", tasks.get("walker-run"), (4, 9))
    with pytest.raises(DatasetError, match=r"walker-run holds 2 episode\(s\); the last 2 are prompts"):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
