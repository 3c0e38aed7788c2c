"""The commands on a macOS that is simulated: without the calls that only Linux has, in all processes, workers included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mujoco")

ONLY_LINUX = """
import multiprocessing, os, select, signal, socket
for module, names in (
    (os, "sched_getaffinity sched_setaffinity posix_fallocate posix_fadvise pidfd_open memfd_create eventfd copy_file_range"),
    (os, "splice getrandom fdatasync sched_getscheduler setresuid getresuid sync_file_range unshare setns O_TMPFILE O_DIRECT"),
    (select, "epoll"),
    (signal, "pidfd_send_signal sigwaitinfo sigtimedwait"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
multiprocessing.set_start_method("spawn", force=True)
os.environ["SIMULATED"] = os.environ.get("SIMULATED", "") + "+"  # one for each generation of processes
"""
COMMANDS = """
import json, sys
from m3dt_agent.cli import main
for command in json.loads(sys.argv[1]):
    print(">", *command, file=sys.stderr, flush=True)
    code = main(command)
    assert code == 0, (command, code)
"""
QUICKSTART = """
from pathlib import Path
from m3dt_agent.quickstart import QuickstartConfig, run
small = QuickstartConfig((3, 2, 2), "float32", demonstrations=4, held_out=3, episodes=1, workers=2)
run(Path("quickstart"), small, say=lambda text: print(text, file=sys.stderr))
"""
NAMES = ["cheetah-vel-20", "cheetah-vel-21", "cheetah-vel-22"]


def on_macos(folder: Path, *commands: list[str], then: str = "") -> None:
    """Runs the commands one after the other in one process, and then a program."""
    (folder / "simulated").mkdir()
    (folder / "simulated" / "sitecustomize.py").write_text(ONLY_LINUX)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS + then, json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": str(folder / "simulated"), "MUJOCO_GL": "osmesa"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def a_round(workers: str) -> list[list[str]]:
    where = ["--root", "data", "--bank", "bank"]
    return [
        ["collect", *NAMES, "--root", "data", "--episodes", "3", "--workers", workers, "--json"],
        ["train", *NAMES, *where, "--preset", "tiny", "--steps", "2", "--threads", "1"],
        ["eval", "bank", "--episodes", "1", "--workers", workers, "--rows", "rows.jsonl"],
    ]


def test_collect_train_and_eval_on_a_simulated_macos(tmp_path: Path) -> None:
    on_macos(tmp_path, *a_round("1"))
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3


def test_the_simulation_reaches_workers(tmp_path: Path) -> None:
    (tmp_path / "simulated").mkdir()
    (tmp_path / "simulated" / "sitecustomize.py").write_text(ONLY_LINUX)
    code = """
import os, pickle, sys
sys.path.insert(0, sys.argv[1])
from job_examples import Square
from m3dt_agent.jobs import LocalProcesses, run_jobs
from pathlib import Path

class Seen(Square):
    def __call__(self):
        return hasattr(os, "sched_getaffinity"), os.environ["SIMULATED"]

if __name__ == "__main__":
    print(list(run_jobs([Seen(0, Path())], LocalProcesses(1))))
"""
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py", str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "simulated")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[(0, (False, '++'))]\n", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_parts_on_a_simulated_macos(tmp_path: Path) -> None:
    """Workers, all stages, all simulators, and a small quickstart."""
    pytest.importorskip("metaworld")
    on_macos(
        tmp_path,
        ["collect", "reach", "walker-run", "--root", "data", "--episodes", "3", "--workers", "2"],
        *a_round("2"),
        ["eval", "zero", "reach", "walker-run", "--episodes", "1", "--workers", "2"],
        ["doctor"],
        then=QUICKSTART,
    )
    assert (tmp_path / "quickstart" / "figure.png").is_file()
