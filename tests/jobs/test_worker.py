"""Workers that cannot start or cannot load a job: scripts without a main guard, standard input, modules they cannot import."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from job_examples import Square, attempts

from m3dt_agent.errors import ConfigError, M3DTError
from m3dt_agent.jobs import LocalProcesses, run_jobs

TESTS = Path(__file__).parents[1]
HEAD = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from job_examples import Square
from m3dt_agent.errors import M3DTError
from m3dt_agent.jobs import LocalProcesses, run_jobs

class Mine(Square):
    pass

def run(kind, folder):
    try:
        print(sorted(run_jobs([kind(i, Path(folder)) for i in range(3)], LocalProcesses(2))))
    except M3DTError as error:
        print("M3DTError:", error)
"""


def run(script: str, folder: Path, *, from_input: bool) -> subprocess.CompletedProcess[str]:
    """Runs the script from a file or from standard input."""
    (folder / "notes").mkdir()
    if from_input:
        return subprocess.run([sys.executable], input=script, cwd=folder, capture_output=True, text=True, timeout=60)
    (folder / "script.py").write_text(script)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("from_input", [False, True])
def test_a_script_needs_no_guard_for_jobs_of_other_modules(tmp_path: Path, from_input: bool) -> None:
    done = run(HEAD + "run(Square, 'notes')", tmp_path, from_input=from_input)
    assert (done.stdout, done.stderr) == ("[(0, 0), (1, 1), (2, 4)]\n", "")


def test_a_guarded_script_may_have_jobs_of_its_own(tmp_path: Path) -> None:
    done = run(HEAD + "if __name__ == '__main__':\n    run(Mine, 'notes')", tmp_path, from_input=False)
    assert (done.stdout, done.stderr) == ("[(0, 0), (1, 1), (2, 4)]\n", "")


@pytest.mark.parametrize("from_input", [False, True])
def test_a_job_of_a_script_without_a_guard_is_one_message_and_not_retried(tmp_path: Path, from_input: bool) -> None:
    done = run(
        HEAD + "if __name__ != '__main__':\n    Path('again').touch()\nrun(Mine, 'notes')", tmp_path, from_input=from_input
    )
    (line,) = done.stdout.splitlines()
    assert re.match(r"M3DTError: square of \d: it uses a class or function of ", line)
    assert "put what a script starts under `if __name__ == '__main__':`" in line
    assert "in a module that workers can import too, or use no workers (workers=0)" in line
    assert ("<stdin>" if from_input else "script.py") in line
    assert done.stderr == ""
    assert [attempts(tmp_path / "notes", i) for i in range(3)] == [0, 0, 0]


def test_a_job_that_a_worker_cannot_import_is_named_and_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("from job_examples import Square\nclass Mine(Square): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(
        ConfigError, match=r"^square of 0: a worker cannot load the job: ModuleNotFoundError: .*'only_here'; put the"
    ):
        list(run_jobs([module.Mine(0, tmp_path)], LocalProcesses(1)))
    assert list(run_jobs([module.Mine(3, tmp_path)], LocalProcesses(0))) == [(0, 9)]


def test_a_job_that_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    class Local(Square):
        pass

    with pytest.raises(ConfigError, match=r"^square of 0: a job must be picklable to reach a worker: .*Local.*workers=0"):
        list(run_jobs([Local(0, tmp_path)], LocalProcesses(1)))


def test_a_result_that_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    with pytest.raises(M3DTError, match=r"(?s)^square of 0 failed:.*cannot pickle"):
        list(run_jobs([Square(0, tmp_path, "lock")], LocalProcesses(1, retries=0)))


def test_a_worker_whose_python_cannot_start_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho started >> {tmp_path}/starts\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", str(program).encode())
    with pytest.raises(
        M3DTError, match=r"^square of 0: a worker process cannot start \(exit code 7; its own message is above\); workers=0"
    ):
        list(run_jobs([Square(0, tmp_path)], LocalProcesses(1)))
    assert (tmp_path / "starts").read_text().count("started") == 1
