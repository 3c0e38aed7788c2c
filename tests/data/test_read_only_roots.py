"""Datasets in a folder that cannot be written are packed elsewhere, said once; packs that are there already are used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m3dt_agent import tasks
from m3dt_agent.data.episodes import find_sources
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.task_datasets import TaskDatasets

NAMES = ("reach", "push")

_OPEN = """
import logging, os, sys
from pathlib import Path
from m3dt_agent import tasks
from m3dt_agent.data.episodes import find_sources, validate_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
for name in sys.argv[3:]:  # imports what is imported late, while Python's own files can be read
    assert validate_dataset(find_sources(sys.argv[1], tasks.get(name))["expert"], tasks.get(name)) == []
if os.geteuid() == 0:  # who may write everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
logging.basicConfig(format="%(message)s")
for _ in range(2):
    data = TaskDatasets.open(sys.argv[1], sys.argv[3:], cache=sys.argv[2] or None)
print(sorted(packed.returns.sum() for packed in data.packed))
"""


@pytest.fixture
def root(make_dataset: Callable[..., Path]) -> Iterator[Path]:
    """A root that its reader cannot write; not in tmp_path, which other users cannot enter."""
    with tempfile.TemporaryDirectory(prefix="m3dt-read-only-") as folder:
        os.chmod(folder, 0o755)
        for name in NAMES:
            make_dataset(Path(folder, "root"), tasks.get(name), (3, 4, 5))
        home = Path(folder, "home")
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        yield Path(folder, "root")
        for path in Path(folder).rglob("*"):
            path.chmod(0o755)


def seal(root: Path) -> None:
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)


def opened(root: Path, cache: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Opens the datasets twice in a process that may not write the root: the superuser's becomes nobody's."""
    variables = {"HOME": str(root.parent / "home"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", _OPEN, str(root), str(cache or ""), *NAMES]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables, cwd=root)


def test_packs_of_a_read_only_root_go_to_the_users_cache_and_one_message_says_so(root: Path) -> None:
    seal(root)
    done = opened(root)
    assert done.returncode == 0, done.stderr
    (cache,) = (root.parent / "home" / ".cache" / "m3dt-agent" / "packed").glob("root-*")
    assert sorted(path.name for path in cache.iterdir()) == sorted(NAMES)
    assert len(list(cache.glob("*/*/steps.f32"))) == 2
    assert done.stderr.count(f"{root} cannot be written: packed copies are in {cache} (cache=, --cache: another folder)") == 1
    assert not (root / ".packed").exists()


def test_a_cache_that_is_named_is_taken(root: Path) -> None:
    seal(root)
    done = opened(root, XDG_CACHE_HOME=str(root.parent / "home" / "xdg"))
    assert done.returncode == 0, done.stderr
    assert list((root.parent / "home" / "xdg").glob("m3dt-agent/packed/root-*/reach/*/steps.f32"))
    done = opened(root, root.parent / "home" / "named")
    assert done.returncode == 0, done.stderr
    assert "cannot be written" not in done.stderr
    assert list((root.parent / "home" / "named").glob("reach/*/steps.f32"))


def test_packs_that_a_read_only_root_has_are_used(root: Path) -> None:
    expected = sorted(packed.returns.sum() for packed in TaskDatasets.open(root, NAMES).packed)
    seal(root)
    done = opened(root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(expected)
    assert not list((root.parent / "home").rglob("steps.f32"))  # only hashes and locks are there


def test_no_cache_at_all_is_an_error_that_names_the_folder(root: Path) -> None:
    seal(root)
    (root.parent / "home").chmod(0o555)
    done = opened(root)
    assert done.returncode == 1
    assert "PathError" in done.stderr
    assert ".cache cannot be used: you have no permission" in done.stderr


def test_two_roots_do_not_share_a_folder_of_the_cache(root: Path) -> None:
    shutil.copytree(root, root.parent / "second" / "root")
    for one in (root, root.parent / "second" / "root"):
        seal(one)
        assert opened(one, HOME=str(root.parent / "home")).returncode == 0
    assert len(list((root.parent / "home" / ".cache" / "m3dt-agent" / "packed").glob("root-*"))) == 2


def test_a_tilde_stands_for_the_home(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.chdir(tmp_path)
    assert list(find_sources("~/root", tasks.get("reach"))) == ["expert"]
    assert pack_dataset("~/root/m3dt/reach/expert-v0", tasks.get("reach"), cache="~/home/packs").returns.shape == (3,)
    TaskDatasets.open("~/root", NAMES, cache="~/home/packs")
    assert (root.parent / "home" / "packs" / "reach").is_dir()
    assert not list(tmp_path.iterdir())


def test_the_command_lines_option(root: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("data", "pack", "reach", "--root", root, "--cache", root.parent / "home" / "packs")
    assert code == 0, err
    assert list((root.parent / "home" / "packs").glob("reach/*/steps.f32"))
    assert not (root / ".packed").exists()
