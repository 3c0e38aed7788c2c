"""Locks and positioned reads are the same whatever the system offers; without fcntl and pread too."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3dt_agent.system import platforms
from m3dt_agent.system.platforms import flush, locked, read_at, reserve

HOLDER = """
import sys, pathlib
from m3dt_agent.system import platforms
if sys.argv[2] == "without":
    platforms.fcntl = None
with platforms.locked(pathlib.Path(sys.argv[1]), shared=sys.argv[3] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["with", "without"])
def fcntl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with this system's own locks and as on a system that has none."""
    if request.param == "without":
        monkeypatch.setattr(platforms, "fcntl", None)
    return str(request.param)


@contextlib.contextmanager
def other_process(path: Path, fcntl: str, kind: str = "alone") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), fcntl, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_lock_keeps_other_processes_out_until_its_holder_is_killed(what: str, fcntl: str, tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.mkdir() if what == "folder" else path.touch()
    with other_process(path, fcntl) as holder:
        with locked(path, wait=False) as held:
            assert not held
        holder.kill()
        holder.wait()
        with locked(path, wait=False) as held:
            assert held
    assert what == "file" or not list(path.iterdir())


def test_holders_that_share(tmp_path: Path) -> None:
    with other_process(tmp_path, "with", "shared"):
        with locked(tmp_path, shared=True, wait=False) as held:
            assert held
        with locked(tmp_path, wait=False) as held:
            assert not held


def test_a_lock_is_waited_for(fcntl: str, tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_file_is_made_but_never_through_a_link(fcntl: str, tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", create=True) as held:
        assert held
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("theirs")
    (tmp_path / "nowhere").symlink_to("not-there")
    for name in ("link", "nowhere"):
        with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / name, create=True):
            pass
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize("pread", [True, False])
def test_threads_read_at_their_own_positions(pread: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pread:
        monkeypatch.delattr(os, "pread")
    content = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(content)
    wrong: list[int] = []
    with (tmp_path / "file").open("rb") as file:

        def read(start: int) -> None:
            wrong.extend(i for i in range(start, 25_000, 7) if read_at(file.fileno(), 50, i) != content[i : i + 50])

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert read_at(file.fileno(), 50, len(content) - 3) == content[-3:]
        assert read_at(file.fileno(), 50, len(content) + 3) == b""


@pytest.mark.parametrize("reserves", [True, False])
def test_reserved_bytes_are_zero_and_on_disk(reserves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    with (tmp_path / "file").open("w+b") as file:
        reserve(file.fileno(), 3_000_001)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 3_000_001
        assert file.read() == bytes(3_000_001)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with (tmp_path / "full").open("w+b") as file, pytest.raises(OSError, match="File too large"):
            reserve(file.fileno(), 3_000_001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_flush_takes_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flush(tmp_path / "file")
    flush(tmp_path)


def test_only_this_module_asks_for_what_windows_lacks() -> None:
    root = Path(platforms.__file__).parents[2]
    files = [*(root / "m3dt_agent").rglob("*.py"), *(root / "hub").rglob("*.py")]
    asking = [
        path.name
        for path in files
        if any(word in path.read_text() for word in ("fcntl.", "os.pread(", "os.getuid()", "os.posix"))
    ]
    assert asking == ["platforms.py"]


WITHOUT = """
import asyncio, os, sys, filelock, tempfile, subprocess  # asyncio asks for sysconf when it is imported, since Python 3.12
filelock.lock_descriptor  # which has the system's own locks, here as on Windows
sys.modules["fcntl"] = None
os.environ["USERNAME"] = "somebody"  # as Windows sets it
for name in ("pread", "getuid", "sysconf", "O_NOFOLLOW", "O_NONBLOCK"):
    delattr(os, name)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from small_banks import CONFIG, new_bank, parts, random_model
from m3dt_agent.bank import ExpertBank
from m3dt_agent import M3DTAgent
from m3dt_agent.system import platforms
from m3dt_agent.training.checkpoint import training_lock
assert platforms.fcntl is None
path = Path(sys.argv[2]) / "bank"
new_bank(path).commit(parts(random_model()))
bank = ExpertBank.open(path)
with training_lock(path), bank.held():
    bank.copy_to(path.with_name("copy"))
agent = M3DTAgent.load(path.with_name("copy"))
agent.reset(task="walker-run")
import numpy as np
print(agent.act(np.zeros(24, np.float32)).shape, sorted(file.name for file in path.iterdir()))
"""


def test_banks_and_agents_work_where_the_system_lacks_all_that(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(Path(__file__).parents[1]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    files = ["backbone.safetensors", "bank.json", "experts", "prompts.safetensors", "resume", "router.safetensors"]
    assert done.stdout.strip() == f"(6,) {[*files, 'statistics.safetensors']}"
