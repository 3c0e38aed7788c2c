"""Datasets of strangers that name other files, or promise more than they hold, are refused before an array is read."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.episodes import validate_dataset
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.validation import STEPS_FILE, scan_episodes
from m3dt_agent.errors import DatasetError

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
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it blocks"
    return found[0]


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
