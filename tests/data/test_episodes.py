"""Episodes survive Minari bit for bit; nothing half-written is ever visible; nothing in a dataset is executed."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.config import DataConfig
from m3dt_agent.data.episodes import (
    Episode,
    dataset_id,
    dataset_path,
    find_sources,
    read_episodes,
    read_metadata,
    validate_dataset,
    write_dataset,
)
from m3dt_agent.data.kept import is_kept
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError, DiskSpaceError

MakeEpisode = Callable[..., Episode]
MakeDataset = Callable[..., Path]

FOUR_DOMAINS = ("pick-place", "pendulum-swingup", "ant-dir-7", "cheetah-vel-20")
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations", "success")


def left_over(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("name", FOUR_DOMAINS)
def test_round_trip_is_exact(tmp_path: Path, make_episode: MakeEpisode, name: str) -> None:
    task = tasks.get(name)
    written = [make_episode(task, length, i, success_at=length // 2) for i, length in enumerate((1, 7, task.max_episode_steps))]
    written[1] = dataclasses.replace(written[1], seed=None)
    path = write_dataset(tmp_path, task, "mixed", iter(written), metadata={"stop_after_success": 3, "m3dt_policy": "expert"})

    assert path == dataset_path(tmp_path, f"m3dt/{name}/mixed-v0") == find_sources(tmp_path, task)["mixed"]
    assert validate_dataset(path, task) == []
    read = list(read_episodes(path))
    assert [episode.seed for episode in read] == [0, None, 2]
    for before, after in zip(written, read, strict=True):
        assert before.length == after.length
        for field in FIELDS:
            expected, found = getattr(before, field), getattr(after, field)
            assert (expected is None) == (found is None)
            if expected is not None:
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == expected.dtype
    metadata = read_metadata(path)
    kept = {key: metadata[key] for key in ("m3dt_task", "m3dt_source", "m3dt_policy", "stop_after_success")}
    assert kept == {"m3dt_task": name, "m3dt_source": "mixed", "m3dt_policy": "expert", "stop_after_success": 3}
    assert json.loads(metadata["env_spec"])["id"] == task.env_id


def test_episode_converts_and_sums_in_float64() -> None:
    rewards = np.full(10_000, 0.1)
    episode = Episode(np.zeros((10_001, 2)), np.zeros((10_000, 1)), rewards, rewards < 0, rewards < 0)  # type: ignore[arg-type]
    assert episode.observations.dtype == episode.actions.dtype == episode.rewards.dtype == np.float32
    assert episode.episode_return == pytest.approx(10_000 * float(np.float32(0.1)), rel=1e-12)


def test_plain_minari_sees_it(tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari
    from minari.namespace import list_local_namespaces

    for name in FOUR_DOMAINS:
        make_dataset(tmp_path, tasks.get(name), (4, 9))
    TaskDatasets.open(tmp_path, FOUR_DOMAINS, config=DataConfig(n_prompts=1))  # packs must not show up as datasets
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    ids = sorted(f"m3dt/{name}/expert-v0" for name in FOUR_DOMAINS)
    assert sorted(minari.list_local_datasets()) == ids
    assert list_local_namespaces() == sorted(["m3dt", *(f"m3dt/{name}" for name in FOUR_DOMAINS)])
    for name in FOUR_DOMAINS:
        task, dataset = tasks.get(name), minari.load_dataset(f"m3dt/{name}/expert-v0")
        assert (dataset.total_episodes, dataset.total_steps) == (2, 13)
        assert dataset.observation_space.shape == (task.obs_dim,)
        assert dataset.action_space.shape == (task.act_dim,)
        assert dataset.env_spec.id == task.env_id
        assert [episode.observations.shape for episode in dataset] == [(5, task.obs_dim), (10, task.obs_dim)]


@pytest.mark.parametrize("root", ["datasets", "."])
def test_relative_root(tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_dataset(Path(root), tasks.get("push"), (4, 9, 2))
    assert path == tmp_path / root / "m3dt/push/expert-v0"
    assert TaskDatasets.open(root, ["push"]).packed[0].lengths.tolist() == [4, 9, 2]
    assert sorted(left_over(tmp_path / root)) == [".packed", "m3dt"]


@pytest.mark.parametrize("before", [None, "/somewhere/else"])
@pytest.mark.parametrize("fails", [False, True])
def test_minari_root_is_restored(
    tmp_path: Path, make_episode: MakeEpisode, monkeypatch: pytest.MonkeyPatch, before: str | None, fails: bool
) -> None:
    if before is None:
        monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    else:
        monkeypatch.setenv("MINARI_DATASETS_PATH", before)
    task = tasks.get("pendulum-swingup")

    def episodes() -> Iterator[Episode]:
        yield make_episode(task, 3)
        if fails:
            raise RuntimeError("the simulator fell over")

    if fails:
        with pytest.raises(RuntimeError, match="fell over"):
            write_dataset(tmp_path, task, "expert", episodes(), metadata={})
    else:
        write_dataset(tmp_path, task, "expert", episodes(), metadata={})
    assert os.environ.get("MINARI_DATASETS_PATH") == before


def test_one_episode_in_memory_at_a_time(tmp_path: Path, make_episode: MakeEpisode) -> None:
    task = tasks.get("pendulum-swingup")
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def episodes() -> Iterator[Episode]:
        nonlocal most
        for i in range(12):
            episode = make_episode(task, 50, i)
            alive.append(weakref.ref(episode.observations))
            yield episode
            del episode
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))

    write_dataset(tmp_path, task, "expert", episodes(), metadata={})
    assert most <= 2


@pytest.mark.parametrize("error", [RuntimeError("fell over"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_interrupted_writing_leaves_nothing(tmp_path: Path, make_episode: MakeEpisode, error: BaseException) -> None:
    task = tasks.get("reach")

    def episodes() -> Iterator[Episode]:
        yield make_episode(task, 5)
        raise error

    with pytest.raises(type(error)):
        write_dataset(tmp_path, task, "expert", episodes(), metadata={})
    assert left_over(tmp_path) == []


def test_killed_writing_is_invisible_and_swept_up(tmp_path: Path, make_dataset: MakeDataset) -> None:
    script = f"""
        import os, signal
        import numpy as np
        from m3dt_agent import tasks
        from m3dt_agent.data.episodes import Episode, write_dataset
        def episodes():
            for i in range(3):
                flags = np.arange(4) == 3
                yield Episode(np.zeros((5, 3)), np.zeros((4, 1)), np.zeros(4), ~flags & flags, flags)
            os.kill(os.getpid(), signal.SIGKILL)
        write_dataset({str(tmp_path)!r}, tasks.get("pendulum-swingup"), "expert", episodes(), metadata={{}})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -signal.SIGKILL
    task = tasks.get("pendulum-swingup")
    assert find_sources(tmp_path, task) == {}
    assert any(name.startswith(".") for name in left_over(tmp_path))

    make_dataset(tmp_path, task, (4,))
    assert left_over(tmp_path) == ["m3dt"]


def test_writing_loads_no_simulator(tmp_path: Path) -> None:
    script = f"""
        import sys
        import numpy as np
        from m3dt_agent import tasks
        from m3dt_agent.data.episodes import Episode, write_dataset
        flags = np.arange(4) == 3
        episode = Episode(np.zeros((5, 39)), np.zeros((4, 4)), np.zeros(4), ~flags & flags, flags, flags)
        write_dataset({str(tmp_path)!r}, tasks.get("reach"), "expert", [episode], metadata={{}})
        print(sorted({{"mujoco", "metaworld", "dm_control", "shimmy"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_bad_episodes_are_not_written(tmp_path: Path, make_episode: MakeEpisode) -> None:
    task = tasks.get("walker-run")
    good, bad = make_episode(task, 6, 0), make_episode(task, 6, 1)
    bad.observations[4, 2] = np.nan
    with pytest.raises(DatasetError, match=r"'walker-run', episode 1, step 4: observations holds NaN"):
        write_dataset(tmp_path, task, "expert", [good, bad], metadata={})
    with pytest.raises(DatasetError, match=r"episode 0: observations is \(7, 24\); it must be \(7, 15\)"):
        write_dataset(tmp_path, tasks.get("hopper-hop"), "expert", [good], metadata={})
    with pytest.raises(DatasetError, match="no episodes"):
        write_dataset(tmp_path, task, "expert", [], metadata={})
    assert left_over(tmp_path) == []


def test_existing_dataset_is_not_overwritten(tmp_path: Path, make_dataset: MakeDataset) -> None:
    task = tasks.get("walker-run")
    path = make_dataset(tmp_path, task, (3,))
    with pytest.raises(DatasetError, match="exists already"):
        make_dataset(tmp_path, task, (5,))
    assert [episode.length for episode in read_episodes(path)] == [3]


def test_replaced_when_the_new_one_is_whole(tmp_path: Path, make_episode: MakeEpisode, make_dataset: MakeDataset) -> None:
    task = tasks.get("walker-run")
    path = make_dataset(tmp_path, task, (3,))
    bad = make_episode(task, 6)
    bad.rewards[2] = np.nan
    with pytest.raises(DatasetError, match="step 2"):
        write_dataset(tmp_path, task, "expert", [make_episode(task, 5), bad], metadata={}, replace=True)
    assert [episode.length for episode in read_episodes(path)] == [3]
    write_dataset(tmp_path, task, "expert", [make_episode(task, 5)], metadata={}, replace=True)
    assert [episode.length for episode in read_episodes(path)] == [5]
    assert left_over(tmp_path) == ["m3dt"]


def test_metadata_may_be_counted_while_writing(tmp_path: Path, make_episode: MakeEpisode) -> None:
    task, metadata = tasks.get("walker-run"), {"counted": 0}

    def episodes() -> Iterator[Episode]:
        for i in range(3):
            yield make_episode(task, 4, i)
            metadata["counted"] += 1

    assert read_metadata(write_dataset(tmp_path, task, "expert", episodes(), metadata=metadata))["counted"] == 3


@pytest.mark.parametrize("source", ["", "a/b", "../up", "-dash", "two words"])
def test_source_names(source: str) -> None:
    with pytest.raises(DatasetError, match="source name"):
        dataset_id(tasks.get("reach"), source)


def test_full_disk_before_it_is_full(tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DiskSpaceError, match="MB are free"):
        make_dataset(tmp_path, tasks.get("reach"), (3,))
    assert left_over(tmp_path) == []


def test_really_full_disk(tmp_path: Path) -> None:
    script = f"""
        import numpy as np
        from m3dt_agent import tasks
        from m3dt_agent.data.episodes import Episode, write_dataset
        from m3dt_agent.errors import DiskSpaceError
        flags = np.arange(500) == 499
        numbers = np.random.default_rng(0).uniform(-1, 1, (501, 39))
        episode = Episode(numbers, numbers[:-1, :4], numbers[:-1, 0], ~flags & flags, flags, flags)
        try:
            write_dataset({str(tmp_path)!r}, tasks.get("reach"), "expert", (episode for _ in range(300)), metadata={{}})
        except DiskSpaceError as error:
            print("DiskSpaceError", error)
    """
    mount = f'mount -t tmpfs -o size=40M none {tmp_path} || exit 77; {sys.executable} -c "$SCRIPT"; ls -A {tmp_path}'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", mount],
        env={**os.environ, "SCRIPT": textwrap.dedent(script)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 77):
        pytest.skip(f"no small disk to fill: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DiskSpaceError"), done.stdout + done.stderr
    assert str(tmp_path) in done.stdout
    assert len(done.stdout.splitlines()) == 1  # ls -A finds nothing


def test_nothing_in_a_dataset_is_executed(tmp_path: Path, make_dataset: MakeDataset) -> None:
    task, proof = tasks.get("pendulum-swingup"), tmp_path / "executed"
    path = make_dataset(tmp_path / "root", task, (3, 4, 5))
    file = path / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["observation_space"]
    spec = json.loads(metadata["env_spec"])
    spec |= {"entry_point": "os:system", "kwargs": {"command": f"touch {proof}"}, "id": "Evil-v0"}
    metadata["env_spec"] = metadata["eval_env_spec"] = json.dumps(spec)
    file.write_text(json.dumps(metadata))

    assert "observation_space is missing from the metadata" in validate_dataset(path, task)
    with pytest.raises(DatasetError, match="observation_space is missing"):
        TaskDatasets.open(tmp_path / "root", [task])
    assert len(list(read_episodes(path))) == 3
    assert not proof.exists()


def killed_while_replacing(root: Path, episode: Episode) -> None:
    """A child that is killed when the old dataset was moved away and the new one is not yet there."""
    child = os.fork()
    if child == 0:
        rename = os.rename

        def rename_and_die(source: Path, target: Path) -> None:
            rename(source, target)
            if Path(source).name == "expert-v0" and Path(target).parent == Path(source).parent:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename_and_die  # type: ignore[assignment]
        try:
            write_dataset(root, tasks.get("walker-run"), "expert", [episode], metadata={}, replace=True)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was never at this point"


@pytest.mark.parametrize("look", ["find", "write", "kept"])
def test_a_kill_while_a_dataset_is_replaced_loses_no_byte(
    look: str, tmp_path: Path, make_episode: MakeEpisode, make_dataset: MakeDataset
) -> None:
    task = tasks.get("walker-run")
    path = make_dataset(tmp_path, task, (3, 4))
    files = [path / "data" / name for name in ("main_data.hdf5", "metadata.json")]
    before = [file.read_bytes() for file in files]
    killed_while_replacing(tmp_path, make_episode(task, 5))
    assert not path.exists()
    if look == "find":
        assert find_sources(tmp_path, task) == {"expert": path}
    elif look == "write":
        with pytest.raises(DatasetError, match="exists already"):
            write_dataset(tmp_path, task, "expert", [make_episode(task, 5)], metadata={})
    else:
        with pytest.raises(DatasetError, match="exists and was made from something else"):
            is_kept(path, "m3dt_collect", "x", overwrite=False)
    assert [file.read_bytes() for file in files] == before
    assert validate_dataset(path, task) == []
