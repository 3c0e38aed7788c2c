"""Datasets of strangers that name other files, or promise more than they hold, are refused before an array is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.episodes import validate_dataset
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.validation import METADATA_FILE, STEPS_FILE, scan_episodes
from m3dt_agent.errors import DatasetError, M3DTError

TASK = tasks.get("reach")
SECRET = b"-----BEGIN OPENSSH PRIVATE KEY----- not for training " * 400
Forge = Callable[[h5py.File, Path], None]


def external_storage(file: h5py.File, secret: Path) -> None:
    shape = file["episode_1/observations"].shape
    del file["episode_1/observations"]
    file.create_dataset("episode_1/observations", shape, "float32", external=[(str(secret), 0, int(np.prod(shape)) * 4)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["stolen"] = file["episode_1/rewards"][()]
    shape = file["episode_1/rewards"].shape
    layout = h5py.VirtualLayout(shape, "float32")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "stolen", shape)
    del file["episode_1/rewards"]
    file.create_virtual_dataset("episode_1/rewards", layout)


def external_link(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["actions"] = file["episode_1/actions"][()]
    del file["episode_1/actions"]
    file["episode_1/actions"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "actions")


def linked_episode(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        file.copy("episode_1", other)
    del file["episode_1"]
    file["episode_1"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "episode_1")


def linked_infos(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["infos/success"] = np.zeros(len(file["episode_1/rewards"]), bool)
    if "infos" in file["episode_1"]:
        del file["episode_1/infos"]
    file["episode_1/infos"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "infos")


def soft_link(file: h5py.File, secret: Path) -> None:
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.SoftLink("/episode_0/rewards")


def pipe(file: h5py.File, secret: Path) -> None:
    os.mkfifo(secret.with_suffix(".pipe"))
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.ExternalLink(str(secret.with_suffix(".pipe")), "rewards")


FORGERIES: dict[str, tuple[Forge, str]] = {
    "external storage": (external_storage, "observations keeps its numbers in another file"),
    "virtual dataset": (virtual_dataset, "rewards is a virtual dataset"),
    "external link": (external_link, r"actions is a link to somewhere else \(ExternalLink\)"),
    "an episode that is a link": (linked_episode, r"episode_1 is a link to somewhere else \(ExternalLink\)"),
    "infos that are a link": (linked_infos, r"infos is a link to somewhere else \(ExternalLink\)"),
    "soft link": (soft_link, r"rewards is a link to somewhere else \(SoftLink\)"),
    "a pipe, which would block for ever": (pipe, r"rewards is a link to somewhere else \(ExternalLink\)"),
}


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path / "root", TASK, (6, 8, 10))


def within_seconds(call: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The result of `call`; a call that blocks fails the test instead of hanging it."""
    found: list[Future[Any]] = [Future()]

    def run() -> None:
        try:
            found[0].set_result(call())
        except BaseException as error:
            found[0].set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found[0].result(seconds)


@pytest.mark.parametrize(("forge", "problem"), FORGERIES.values(), ids=FORGERIES)
def test_other_files_are_never_read(forge: Forge, problem: str, dataset: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_bytes(SECRET)
    with h5py.File(dataset / STEPS_FILE, "r+") as file:
        forge(file, secret)
    found = within_seconds(lambda: validate_dataset(dataset, TASK))
    assert len([text for text in found if text.startswith("episode 1: ")]) == 1
    assert re.search(problem, "\n".join(found))
    for task in (TASK, None):
        episode = list(scan_episodes(dataset, task))[1]
        assert not episode.arrays
        assert episode.problems
    with pytest.raises(DatasetError, match=problem):
        pack_dataset(dataset, TASK)
    stolen = [path for path in dataset.parent.rglob("*") if path.is_file() and SECRET[:16] in path.read_bytes()]
    assert not stolen, "bytes of the user's file are in the dataset's folder"


@pytest.mark.parametrize("task", [TASK, None], ids=["for a task", "for import"])
@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "infos/success"])
def test_a_shape_that_promises_gigabytes_is_refused_before_it_is_read(name: str, task: Any, dataset: Path) -> None:
    with h5py.File(dataset / STEPS_FILE, "r+") as file:
        if name in file["episode_1"]:
            del file[f"episode_1/{name}"]
        shape = (10, 500_000_000) if name in ("observations", "actions") else (10, 10**9)
        file.create_dataset(f"episode_1/{name}", shape, "float32", chunks=(1, 1024))  # nothing is stored: a few hundred bytes
    assert (dataset / STEPS_FILE).stat().st_size < 1_000_000
    episode = list(scan_episodes(dataset, task))[1]
    assert not episode.arrays
    assert "an array of an episode has at most 16,777,216 numbers" in episode.problems[0]


def replaced(file: h5py.File, name: str, **stored: Any) -> None:
    """Stores an array of episode 1 in another way."""
    values = file[f"episode_1/{name}"][()]
    del file[f"episode_1/{name}"]
    file.create_dataset(f"episode_1/{name}", data=values, **stored)


def inflating_chunk(file: h5py.File, _: Path) -> None:
    """The chunk has 1,248 bytes, and 200 kB in the file inflate to 200 MB."""
    del file["episode_1/observations"]
    array = file.create_dataset("episode_1/observations", (9, 39), "float32", chunks=(8, 39), compression="gzip")
    array.id.write_direct_chunk((0, 0), zlib.compress(bytes(200_000_000), 1))


def small_inflating_chunk(file: h5py.File, _: Path) -> None:
    """The same with fewer bytes in the file than the chunk has."""
    del file["episode_1/observations"]
    array = file.create_dataset(
        "episode_1/observations", (9, 39), "float32", chunks=(100_000, 39), maxshape=(None, 39), compression=1
    )
    array.id.write_direct_chunk((0, 0), zlib.compress(bytes(300_000_000), 1))


def huge_chunks(file: h5py.File, _: Path) -> None:
    """HDF5 takes 1.5 GB to read the first row."""
    del file["episode_1/observations"]
    file.create_dataset("episode_1/observations", (9, 39), "float32", chunks=(10_000_000, 39), maxshape=(None, 39))


def many_hard_links(file: h5py.File, _: Path) -> None:
    """A thousand episodes of 80 kB in a file that has one, of zeros."""
    del file["episode_2/observations"]
    file.create_dataset("episode_2/observations", data=np.zeros((501, 39), np.float32), compression="gzip")
    for i in range(3, 1_000):
        file[f"episode_{i}"] = file["episode_2"]


def too_many_groups(file: h5py.File, _: Path) -> None:
    for i in range(3, 102):
        file[f"episode_{i}"] = file["episode_0/rewards"]


def seed_of_another_type(file: h5py.File, _: Path) -> None:
    del file["episode_1"].attrs["seed"]
    file["episode_1"].attrs["seed"] = np.arange(8_000)


def lzf(file: h5py.File, _: Path) -> None:
    replaced(file, "observations", compression="lzf")


def deflated_twice(file: h5py.File, _: Path) -> None:
    values = file["episode_1/observations"][()]
    del file["episode_1/observations"]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(values.shape)
    plan.set_deflate(9)
    plan.set_deflate(9)
    h5py.h5d.create(
        file["episode_1"].id, b"observations", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(values.shape), dcpl=plan
    ).write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def wide(file: h5py.File, _: Path, width: int = 2_000) -> None:
    """More numbers than the task has, none of them stored."""
    for i in range(3):
        del file[f"episode_{i}/observations"]
        file.create_dataset(f"episode_{i}/observations", (9, width), "float32", chunks=(1, 1024))


def very_wide(file: h5py.File, path: Path) -> None:
    """12 MB for each episode."""
    wide(file, path, 300_000)


BOMBS: dict[str, tuple[Forge, str]] = {
    "a chunk that inflates": (inflating_chunk, "observations has a chunk of 1,248 bytes that takes"),
    "a small chunk that inflates": (small_inflating_chunk, "a chunk of 15,600,000 bytes that inflates to more than that"),
    "chunks of gigabytes": (huge_chunks, "observations is stored in chunks of 1,560,000,000 bytes"),
    "the same episode ever again": (many_hard_links, "more than 100 bytes of numbers for each byte of the file"),
    "too many entries": (too_many_groups, "102 entries; a dataset has at most 100 episodes"),
    "a seed that is an array": (seed_of_another_type, r"its seed is int64 \(8000,\), not an integer"),
    "another filter": (lzf, r"observations is stored with filter 32000; only deflate \(gzip\), shuffle and fletcher32"),
    "a filter twice": (deflated_twice, "observations is stored with filter 1; only deflate"),
    "wide arrays": (wide, r"episode 1: observations is \(9, 2000\); it must be \(9, 39\)"),
    "very wide arrays": (very_wide, "more than 100 bytes of numbers for each byte of the file"),
}


@pytest.mark.parametrize(("forge", "problem"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_by_name(
    forge: Forge, problem: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3dt_agent.data.hdf5_files.MOST_EPISODES", 2_000 if forge is many_hard_links else 100)
    with h5py.File(dataset / STEPS_FILE, "r+") as file:
        forge(file, tmp_path)
    assert re.search(problem, "\n".join(within_seconds(lambda: validate_dataset(dataset, TASK))))
    with pytest.raises(DatasetError, match=r"cannot be packed|a dataset has at most|for each byte of the"):
        pack_dataset(dataset, TASK)


_MEASURED = """
import resource, sys
from pathlib import Path
from m3dt_agent import tasks
from m3dt_agent.data.episodes import validate_dataset
import h5py
free = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    assert validate_dataset(Path(path), tasks.get("reach")), path
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - free)
"""


def test_bombs_take_no_memory(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    paths = []
    for i, (forge, _) in enumerate((*BOMBS.values(),)):
        if forge is not too_many_groups:  # that many take long to make
            paths.append(make_dataset(tmp_path / str(i), TASK, (6, 8, 10)))
            with h5py.File(paths[-1] / STEPS_FILE, "r+") as file:
                forge(file, tmp_path)
    done = subprocess.run([sys.executable, "-c", _MEASURED, *map(str, paths)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60_000, "kilobytes"  # one chunk of 16 MB, inflated and stored


@pytest.mark.parametrize("compression", [{"compression": "gzip"}, {"compression": 9, "shuffle": True, "fletcher32": True}])
def test_honest_compression_is_read(compression: dict[str, Any], dataset: Path) -> None:
    before = list(scan_episodes(dataset, TASK))[1].arrays
    with h5py.File(dataset / STEPS_FILE, "r+") as file:
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos/success"):
            replaced(file, name, chunks=True, **compression)
    assert validate_dataset(dataset, TASK) == []
    after = list(scan_episodes(dataset, TASK))[1].arrays
    assert {name: array.tobytes() for name, array in after.items()} == {name: array.tobytes() for name, array in before.items()}


# -- files that are no files ---------------------------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def make_folder(path: Path) -> None:
    path.mkdir()


SPECIAL = {"a pipe": make_pipe, "zeros without end": link_to_zeros, "a loop": link_to_itself, "a folder": make_folder}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("name", [METADATA_FILE, STEPS_FILE], ids=str)
def test_a_special_file_is_refused_and_blocks_nothing(make: Callable[[Path], None], name: Path, dataset: Path) -> None:
    (dataset / name).unlink()
    make(dataset / name)
    (problem,) = within_seconds(lambda: validate_dataset(dataset, TASK))
    assert re.search(f"not a whole dataset: {name} (is not a regular file|cannot be opened: Too many levels)", problem)
    with pytest.raises(DatasetError, match="not a whole dataset"):
        pack_dataset(dataset, TASK)


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("name", ["steps.f32", "episodes.safetensors", "pack.json", "../expert-v0.source.json"])
def test_a_special_file_in_a_pack_is_no_pack(make: Callable[[Path], None], name: str, dataset: Path) -> None:
    steps = pack_dataset(dataset, TASK).steps.tobytes()
    (folder,) = (dataset.parents[2] / ".packed" / TASK.name).glob("*-v0-*")
    (folder / name).unlink()
    make(folder / name)
    if name.startswith("..") and make is make_folder:
        with pytest.raises(M3DTError, match=r"source\.json cannot be used"):
            pack_dataset(dataset, TASK)
        return
    assert within_seconds(lambda: pack_dataset(dataset, TASK)).steps.tobytes() == steps


def test_a_path_that_no_file_has(dataset: Path) -> None:
    for path in (f"{dataset}\0", f"{dataset}\udc80" + "\ud800"):
        with pytest.raises(M3DTError, match="cannot be used"):
            pack_dataset(path, TASK)
        with pytest.raises(M3DTError, match="cannot be used"):
            validate_dataset(path, TASK)


@pytest.mark.parametrize("linked", [".packed", ".packed/reach"])
def test_packs_are_not_written_through_a_link_of_the_root(
    linked: str, tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_dataset(tmp_path / "root", TASK, (6, 8, 10))
    (tmp_path / "elsewhere").mkdir()
    (path.parents[2] / linked).parent.mkdir(exist_ok=True)
    (path.parents[2] / linked).symlink_to(tmp_path / "elsewhere")
    assert len(pack_dataset(path, TASK).lengths) == 3
    assert not list((tmp_path / "elsewhere").iterdir()), "it was written to where a stranger's link leads"
    assert list((tmp_path / "cache").rglob("pack.json"))
