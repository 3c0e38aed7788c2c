"""Published data, written small in each format, becomes datasets that hold its numbers; what is wrong with it is named."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from published_writers import (
    assert_holds,
    save_tensordict,
    tdmpc2_tensors,
    trajectory,
    write_mt160,
    write_prompt_dt,
)

from m3dt_agent import tasks
from m3dt_agent.cli import main
from m3dt_agent.data.episodes import Episode, read_episodes, read_metadata, validate_dataset, write_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, DatasetError, UnknownTaskError
from m3dt_agent.hub import convert_data
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.published.tdmpc2 import find_tdmpc2

# -- each format ---------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_prompt_dt(tmp_path: Path, protocol: int) -> None:
    ant, cheetah = tasks.get("ant-dir-12"), tasks.get("cheetah-vel-3")
    folder = tmp_path / "in"
    medium = write_prompt_dt(folder / "ant_dir" / "ant_dir-12-medium.pkl", ant, (200, 60, 200), 10, protocol)
    expert = write_prompt_dt(folder / "ant_dir" / "ant_dir-12-expert.pkl", ant, (200, 200), 20, protocol)
    prompts = write_prompt_dt(folder / "ant_dir" / "ant_dir-12-prompt-expert.pkl", ant, (200, 200, 200), 30, protocol)
    plain = write_prompt_dt(folder / "cheetah_vel" / "cheetah_vel-3-expert.pkl", cheetah, (200, 200, 200), 40, protocol)
    first, second = import_datasets("prompt-dt", folder, tmp_path / "root")
    read = assert_holds(first.path, [*expert, *medium, *prompts])
    assert [bool(episode.terminations[-1]) for episode in read] == [False, False, False, True, False, False, False, False]
    assert_holds(second.path, plain)
    data = TaskDatasets.open(tmp_path / "root", [ant, cheetah])
    by_return = sorted((5, 6, 7), key=lambda e: -read[e].episode_return)
    assert data.prompt_episodes(0) == by_return[:2]
    assert data.train_episodes(0) == [0, 1, 2, 3, 4]  # the third prompt is not trained on either
    assert data.packed[1].prompt_episodes is None


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


def test_which_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("push", "reach"):
        write_mt160(tmp_path / "in", tasks.get(name), (3, 4, 5))
    (tmp_path / "in" / ".cache").mkdir()
    (tmp_path / "in" / "README.md").write_text("not a folder")
    (tmp_path / "in" / "pusher-v9").mkdir()
    with pytest.raises(DatasetError, match=r"holds names that are no task's: pusher-v9; name the tasks"):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    with pytest.raises(
        DatasetError, match=r"has no data of walker-run; it has: reach, push; names that are no task's: pusher-v9"
    ):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root", ["walker-run", "push"])
    assert not (tmp_path / "root").exists()
    with caplog.at_level("WARNING"):
        (summary,) = import_datasets("mt160", tmp_path / "in", tmp_path / "root", "push")
    assert "pusher-v9" in caplog.text
    assert summary.task.name == "push"
    (tmp_path / "in" / "pusher-v9").rmdir()
    caplog.clear()
    with caplog.at_level("WARNING"):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root", ["reach"])
    assert not caplog.text
    with pytest.raises(UnknownTaskError, match="mt160"):
        import_datasets("mt16", tmp_path / "in", tmp_path / "root")
    with pytest.raises(DatasetError, match="does not exist"):
        import_datasets("mt160", tmp_path / "nowhere", tmp_path / "root")
    for name in ("mt160", "tdmpc2", "prompt-dt"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match="holds no data of any task"):
            import_datasets(name, tmp_path / "empty", tmp_path / "root")


def test_interrupted_it_continues_task_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tasks.resolve(["reach", "push", "walker-run"])
    written = {task.name: write_mt160(tmp_path / "in", task, (3, 4, 5)) for task in chosen}
    update = convert_data.tqdm.update
    seen = 0

    def interrupt(bar: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:  # the second episode of the second task
            raise KeyboardInterrupt
        update(bar)

    monkeypatch.setattr(convert_data.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "root" / "m3dt").iterdir() if path.is_dir()] == ["reach"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["m3dt"]
    again = import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    assert [(summary.task.name, summary.kept) for summary in again] == [("reach", True), ("push", False), ("walker-run", False)]
    for summary in again:
        assert_holds(summary.path, written[summary.task.name])
    assert (again[0].episodes, again[0].steps) == (3, 12)
    assert again[0].mean_return == pytest.approx(np.mean([one["rewards"].sum() for one in written["reach"]]), rel=1e-5)


def test_another_dataset_of_that_name_is_refused_unless_overwritten(tmp_path: Path) -> None:
    task, root = tasks.get("push"), tmp_path / "root"
    write_mt160(tmp_path / "a", task, (3, 4, 5))
    new = write_mt160(tmp_path / "b", task, (6, 7, 8, 9))
    (old,) = import_datasets("mt160", tmp_path / "a", root)
    with pytest.raises(DatasetError, match=r'published-v0 exists and was made from .*"files": 3.*asked for was .*"files": 4'):
        import_datasets("mt160", tmp_path / "b", root)
    damaged = tmp_path / "b" / "push-v2" / "3.npz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    with pytest.raises(DatasetError, match=r"3\.npz"):
        import_datasets("mt160", tmp_path / "b", root, overwrite=True)
    assert len(list(read_episodes(old.path))) == 3  # the old one stays until the new one is whole
    damaged.write_bytes(whole)
    (replaced,) = import_datasets("mt160", tmp_path / "b", root, overwrite=True)
    assert not replaced.kept
    assert_holds(replaced.path, new)
    assert [path.name for path in root.iterdir()] == ["m3dt"]
    (replaced.path / "data" / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match=r"main_data\.hdf5 is missing; remove it, or pass overwrite=True"):
        import_datasets("mt160", tmp_path / "b", root)
    assert_holds(import_datasets("mt160", tmp_path / "b", root, overwrite=True)[0].path, new)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("push", "reach"):
        write_mt160(tmp_path / "in", tasks.get(name), (3, 4, 5), 2.0)
    arguments = ["data", "import", "mt160", str(tmp_path / "in"), "push", "--root", str(tmp_path / "root"), "--source", "mt160"]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["episodes"], row["steps"], row["kept"]) == ("push", 3, 12, False)
    assert Path(row["path"]) == tmp_path / "root" / "m3dt" / "push" / "mt160-v0"
    assert main(arguments) == 0
    assert "yes" in capsys.readouterr().out  # kept
    write_mt160(tmp_path / "other", tasks.get("push"), (3, 4, 5, 6))
    arguments[3] = str(tmp_path / "other")
    assert main(arguments) == 1
    assert "asked for was" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
