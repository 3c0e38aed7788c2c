"""A pack holds its source's numbers, is reused while the source is the same, and is never used damaged or stale."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.episodes import Episode, read_episodes, write_dataset
from m3dt_agent.data.pack import PackedTask, pack_dataset
from m3dt_agent.errors import DatasetError, DiskSpaceError

MakeEpisode = Callable[..., Episode]
MakeDataset = Callable[..., Path]
TASK = tasks.get("push")
LENGTHS = (5, 1, 30, 12)


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    return make_dataset(tmp_path, TASK, LENGTHS)


def packs(dataset: Path) -> list[Path]:
    return sorted((dataset.parents[2] / ".packed" / TASK.name).glob("*-v0-*"))


def equal(one: PackedTask, other: PackedTask) -> bool:
    arrays = ("steps", "offsets", "returns", "success", "obs_mean", "obs_std")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


def change_reward(dataset: Path, value: float) -> None:
    with h5py.File(dataset / "data" / "main_data.hdf5", "a") as file:
        file["episode_2"]["rewards"][4] = value


def test_a_labelled_pack_has_the_labels_too_and_another_format(tmp_path: Path, make_episode: MakeEpisode) -> None:
    clean = [make_episode(TASK, length, i) for i, length in enumerate(LENGTHS)]
    episodes = [dataclasses.replace(episode, demonstrator_actions=-episode.actions) for episode in clean]
    plain, labelled = (
        pack_dataset(write_dataset(tmp_path, TASK, source, found, metadata={}), TASK)
        for source, found in (("plain", clean), ("labelled", episodes))
    )
    assert (plain.labelled, labelled.labelled) == (False, True)
    obs, act = TASK.obs_dim, TASK.act_dim
    np.testing.assert_array_equal(np.delete(labelled.steps, slice(obs + act, obs + 2 * act), axis=1), plain.steps)
    np.testing.assert_array_equal(labelled.steps[:, obs + act : -1], -plain.steps[:, obs:-1])
    for (source, packed), number in zip((("plain", plain), ("labelled", labelled)), (2, 3), strict=True):
        (folder,) = (path for path in packs(tmp_path / "m3dt" / TASK.name / f"{source}-v0") if source in path.name)
        assert json.loads((folder / "pack.json").read_text())["format"] == number
        before = (folder / "pack.json").stat().st_mtime_ns
        assert equal(pack_dataset(tmp_path / "m3dt" / TASK.name / f"{source}-v0", TASK), packed)
        assert (folder / "pack.json").stat().st_mtime_ns == before


def test_a_pack_that_an_older_program_made_of_labelled_data_is_made_again(tmp_path: Path, make_episode: MakeEpisode) -> None:
    episodes = [dataclasses.replace(e, demonstrator_actions=-e.actions) for e in (make_episode(TASK, 5, i) for i in range(3))]
    dataset = write_dataset(tmp_path, TASK, "labelled", episodes, metadata={})
    steps = pack_dataset(dataset, TASK).steps.copy()
    (folder,) = packs(dataset)
    described = json.loads((folder / "pack.json").read_text())
    unlabelled = np.delete(steps, slice(TASK.obs_dim + TASK.act_dim, -1), axis=1)
    (folder / "steps.f32").write_bytes(unlabelled.tobytes())
    changes = {"format": 2, "columns": [TASK.obs_dim, TASK.act_dim, 1], "steps_bytes": unlabelled.nbytes}
    (folder / "pack.json").write_text(json.dumps(described | changes))
    np.testing.assert_array_equal(pack_dataset(dataset, TASK).steps, steps)


def test_contents(dataset: Path) -> None:
    packed = pack_dataset(dataset, TASK)
    episodes = list(read_episodes(dataset))
    rows = []
    for episode in episodes:
        for t in range(episode.length):
            to_go = 0.0
            for reward in episode.rewards[t:]:
                to_go += float(reward)
            rows.append([*episode.observations[t], *episode.actions[t], to_go])
    np.testing.assert_allclose(packed.steps, np.array(rows, np.float32), rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(packed.steps[:, :-1], np.array(rows, np.float32)[:, :-1])
    assert packed.steps.shape == (sum(LENGTHS), TASK.obs_dim + TASK.act_dim + 1)
    assert packed.offsets.tolist() == [0, 5, 6, 36, 48]
    assert packed.lengths.tolist() == list(LENGTHS)
    np.testing.assert_allclose(packed.returns, [episode.episode_return for episode in episodes], rtol=1e-12)
    assert packed.success is not None
    assert not packed.success.any()
    states = np.concatenate([episode.observations[:-1] for episode in episodes]).astype(np.float64)
    np.testing.assert_allclose(packed.obs_mean, states.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(packed.obs_std, states.std(axis=0), rtol=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        packed.steps[0, 0] = 0.0


def test_success_and_mark(tmp_path: Path, make_episode: MakeEpisode) -> None:
    episodes = [make_episode(TASK, 20, 0, success_at=7), make_episode(TASK, 500, 1), make_episode(TASK, 9, 2, success_at=8)]
    packed = pack_dataset(write_dataset(tmp_path, TASK, "quick", episodes, metadata={"stop_after_success": 5}), TASK)
    assert packed.success is not None
    assert packed.success.tolist() == [True, False, True]
    assert packed.stop_after_success == 5

    other = tasks.get("walker-run")
    unmarked = pack_dataset(write_dataset(tmp_path, other, "full", [make_episode(other, 4)], metadata={}), other)
    assert unmarked.success is None
    assert unmarked.stop_after_success == 0


def test_prompt_episodes_that_the_dataset_names(tmp_path: Path, make_dataset: MakeDataset) -> None:
    named = pack_dataset(make_dataset(tmp_path, TASK, LENGTHS, m3dt_prompt_episodes="[3, 0]"), TASK)
    assert named.prompt_episodes == (3, 0)
    assert pack_dataset(make_dataset(tmp_path, TASK, LENGTHS, "other"), TASK).prompt_episodes is None


def test_pack_of_an_earlier_format_is_rebuilt(dataset: Path) -> None:
    pack_dataset(dataset, TASK)
    (folder,) = packs(dataset)
    description = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(description | {"format": 1}))
    pack_dataset(dataset, TASK)
    assert json.loads((folder / "pack.json").read_text()) == description


def test_reused_while_the_source_is_the_same(dataset: Path, tmp_path: Path) -> None:
    first = pack_dataset(dataset, TASK)
    (folder,) = packs(dataset)
    made = (folder / "steps.f32").stat().st_mtime_ns
    moved = tmp_path / "elsewhere"
    assert equal(first, pack_dataset(dataset, TASK))
    shutil.copytree(dataset.parents[2], moved)  # other inodes and times, the same content
    assert equal(first, pack_dataset(moved / dataset.relative_to(dataset.parents[2]), TASK))
    assert (folder / "steps.f32").stat().st_mtime_ns == made
    copied = moved / folder.relative_to(dataset.parents[2]) / "steps.f32"
    assert copied.stat().st_mtime_ns == made  # copytree keeps it; a rebuilt pack would be younger


@pytest.mark.parametrize(
    "damage", ["cut", "longer", "no steps", "no index", "cut index", "flipped index", "no description", "garbage"]
)
def test_damaged_pack_is_rebuilt(dataset: Path, damage: str) -> None:
    before = pack_dataset(dataset, TASK)
    steps = before.steps.copy()
    (folder,) = packs(dataset)
    file = folder / {
        "no index": "episodes.safetensors",
        "cut index": "episodes.safetensors",
        "flipped index": "episodes.safetensors",
    }.get(damage, "pack.json" if damage in ("no description", "garbage") else "steps.f32")
    content = file.read_bytes()
    file.unlink()
    if damage == "flipped index":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif not damage.startswith("no "):
        file.write_bytes(
            {"cut": content[:-4], "longer": content + b"\0" * 4, "cut index": content[:-8], "garbage": b"{"}[damage]
        )
    after = pack_dataset(dataset, TASK)
    np.testing.assert_array_equal(after.steps, steps)
    assert file.read_bytes() == content


def test_changed_source_is_packed_again(dataset: Path) -> None:
    before = pack_dataset(dataset, TASK)
    old = packs(dataset)
    change_reward(dataset, 1234.0)
    after = pack_dataset(dataset, TASK)
    assert after.returns[2] - before.returns[2] > 1000
    assert len(packs(dataset)) == 1
    assert packs(dataset) != old
    assert not np.isnan(before.steps).any()  # whoever had the old one mapped still reads it
    assert before.read(0, 48, 48) == before.steps.tobytes()  # either way


def test_rows_are_read_as_they_are_mapped(dataset: Path) -> None:
    packed = pack_dataset(dataset, TASK)
    width = TASK.obs_dim + TASK.act_dim + 1
    in_memory = dataclasses.replace(packed, stored=np.array(packed.steps))
    for first, count, length in ((0, 1, 1), (7, 20, 20), (47, 1, 6), (36, 12, 13)):
        expected = np.zeros((length, width), np.float32)
        expected[length - count :] = packed.steps[first : first + count]
        assert packed.read(first, count, length) == in_memory.read(first, count, length) == expected.tobytes()


def test_pack_cut_while_in_use(dataset: Path) -> None:
    packed = pack_dataset(dataset, TASK)
    (folder,) = packs(dataset)
    os.truncate(folder / "steps.f32", 40 * packed.steps[0].nbytes)
    packed.read(20, 20, 20)
    with pytest.raises(DatasetError, match=r"steps\.f32 was cut while in use: steps 21 … 40 were asked for; 40 are left"):
        packed.read(21, 20, 20)


def test_open_files_come_back(dataset: Path) -> None:
    pack_dataset(dataset, TASK)
    before = len(os.listdir("/proc/self/fd"))
    opened = [pack_dataset(dataset, TASK) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) > before
    del opened
    assert len(os.listdir("/proc/self/fd")) == before


def test_change_that_hides_its_time_is_noticed(dataset: Path) -> None:
    file = dataset / "data" / "main_data.hdf5"
    before = pack_dataset(dataset, TASK)
    was = file.stat()
    change_reward(dataset, 1234.0)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size
    assert pack_dataset(dataset, TASK).returns[2] - before.returns[2] > 1000


def test_remembered_hash_is_trusted_only_when_old_enough(dataset: Path) -> None:
    """A source changed within its clock's last tick looks unchanged, so a hash taken that soon is taken again."""
    before = pack_dataset(dataset, TASK)
    (memory,) = packs(dataset)[0].parent.glob("*.source.json")
    wrong = json.loads(memory.read_text()) | {"sha256": "0" * 64}
    memory.write_text(json.dumps(wrong))
    assert equal(before, pack_dataset(dataset, TASK))
    assert "0" * 16 not in packs(dataset)[0].name
    memory.write_text(json.dumps(wrong | {"hashed_at": wrong["hashed_at"] + 10**10}))
    pack_dataset(dataset, TASK)
    assert "0" * 16 in packs(dataset)[0].name


def test_invalid_change_is_refused_though_a_pack_exists(dataset: Path) -> None:
    pack_dataset(dataset, TASK)
    change_reward(dataset, np.nan)
    with pytest.raises(DatasetError, match=r"cannot be packed for task 'push':\n  episode 2, step 4: rewards holds NaN"):
        pack_dataset(dataset, TASK)


def test_another_tasks_dataset_is_refused(dataset: Path) -> None:
    with pytest.raises(DatasetError, match="it holds data of task 'push', not 'reach'"):
        pack_dataset(dataset, tasks.get("reach"))


def test_cache_elsewhere(dataset: Path, tmp_path: Path) -> None:
    packed = pack_dataset(dataset, TASK, cache=tmp_path / "cache")
    assert packed.returns.shape == (4,)
    assert not (dataset.parents[2] / ".packed").exists()
    assert list((tmp_path / "cache" / TASK.name).glob("expert-v0-*/steps.f32"))


def test_packing_at_once(dataset: Path) -> None:
    expected = pack_dataset(dataset, TASK, cache=dataset.parents[2] / "alone")
    found: list[PackedTask | BaseException] = []

    def pack() -> None:
        try:
            found.append(pack_dataset(dataset, TASK))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=pack) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(one, PackedTask) and equal(one, expected) for one in found), found
    assert not list((dataset.parents[2] / ".packed" / TASK.name).glob(".*"))


def test_file_that_cannot_grow(tmp_path: Path, make_dataset: MakeDataset) -> None:
    """The limit stands for a full disk or a quota: writing fails half-way."""
    dataset = make_dataset(tmp_path, TASK, (500, 500))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskSpaceError, match=str(tmp_path)):
            pack_dataset(dataset, TASK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert packs(dataset) == []
    assert not list((dataset.parents[2] / ".packed" / TASK.name).glob(".*"))
    assert pack_dataset(dataset, TASK).offsets.tolist() == [0, 500, 1000]


def test_no_room(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(dataset)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match="MB are free"):
        pack_dataset(dataset, TASK)
    assert packs(dataset) == []


def test_interrupted_packing_leaves_nothing(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m3dt_agent.data.pack.publish", interrupt)  # the last moment before it would appear
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(dataset, TASK)
    monkeypatch.undo()
    assert packs(dataset) == []
    assert pack_dataset(dataset, TASK).offsets[-1] == sum(LENGTHS)
