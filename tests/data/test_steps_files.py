"""Any number of files of packed steps are read with a bounded number of descriptors; a change in between is noticed."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.steps_files import StepsFile, close_oldest
from m3dt_agent.errors import DatasetError

WIDTH = 4


def written(path: Path, number: int) -> StepsFile:
    np.full((10, WIDTH), number, np.float32).tofile(path)
    return StepsFile(path, WIDTH)


def first_number(file: StepsFile) -> float:
    return float(np.frombuffer(file.read(3, 2), np.float32)[0])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def limit() -> Iterator[int]:
    """At most 48 open files more than there are, so that 24 to 40 of ours stay open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = descriptors() + 48
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors the Linux way")


def test_more_files_than_descriptors(tmp_path: Path, limit: int) -> None:
    files = [written(tmp_path / str(i), i) for i in range(150)]
    assert descriptors() < limit
    rng = np.random.default_rng(0)
    for i in rng.integers(0, 150, 600).tolist():
        assert first_number(files[i]) == i
        assert descriptors() < limit - 4  # others find some, too
    assert [int(file.map()[0, 0]) for file in files] == list(range(150))


def test_more_files_than_descriptors_in_many_threads(tmp_path: Path, limit: int) -> None:
    files = [written(tmp_path / str(i), i) for i in range(120)]
    wrong: list[object] = []

    def read(seed: int) -> None:
        try:
            drawn = np.random.default_rng(seed).integers(0, 120, 500).tolist()
            wrong.extend(i for i in drawn if first_number(files[i]) != i)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_that_was_replaced_while_it_was_closed_is_noticed(tmp_path: Path) -> None:
    file = written(tmp_path / "a", 1)
    file.close()
    assert first_number(file) == 1  # opened again
    written(tmp_path / "b", 2)
    os.replace(tmp_path / "b", tmp_path / "a")
    assert first_number(file) == 1  # still open: the old one
    file.close()
    with pytest.raises(DatasetError, match="a was replaced or changed while in use; open the datasets again"):
        file.read(0, 1)
    (tmp_path / "a").unlink()
    with pytest.raises(DatasetError, match="a cannot be used: there is nothing here"):
        file.read(0, 1)


def test_files_that_are_gone_take_no_place(tmp_path: Path) -> None:
    before = descriptors()
    for i in range(50):
        written(tmp_path / "a", i)
    assert descriptors() == before


def test_no_descriptor_left_is_an_error_with_the_way_out(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    task = tasks.get("reach")
    dataset = make_dataset(tmp_path, task, (3, 4))
    pack_dataset(dataset, task)
    close_oldest(keep=0)
    taken = []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 3, before[1]))
    try:
        with contextlib.suppress(OSError):  # too many open files
            while True:
                taken.append(os.open(tmp_path, os.O_RDONLY))
        with pytest.raises((DatasetError, OSError), match="ulimit -n"):
            pack_dataset(dataset, task)
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


_TRAIN = """
import os, resource, sys
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from m3dt_agent.cli import main
sys.exit(main(["train", "--all", "--root", sys.argv[1], "--bank", sys.argv[2], "--stage", "backbone", "--preset", "tiny",
               "--steps", "2", "--json"]))
"""


@pytest.mark.slow  # its quick cousin is the first test
def test_train_all_under_a_limit_of_256(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    for task in tasks.TASKS:
        make_dataset(tmp_path / "root", task, (3, 3, 4))
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(tmp_path / "root"), str(tmp_path / "bank")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert (tmp_path / "bank" / "backbone.safetensors").is_file()
