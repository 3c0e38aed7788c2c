"""One run of the real program: its streams, its exit codes, and how Ctrl-C ends it. Every failure is one line."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from m3dt_agent.cli import main
from m3dt_agent.cli.app import app

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(ROOT / "m3dt_program.py")]
Run = Callable[..., tuple[int, str, str]]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell's command line, in which `m3dt` is the program, under `environment` and bash's pipefail."""
    line = f"set -o pipefail; m3dt() {{ '{PROGRAM[0]}' '{PROGRAM[1]}' \"$@\"; }}; {command}"
    return subprocess.run(
        ["bash", "-c", line], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("command", "environment", "code", "error"),
    [
        ("m3dt tasks | true", {}, 141, ""),
        ("m3dt --help | true", {}, 141, ""),
        (
            "m3dt tasks --json >&-",
            {},
            1,
            "error: stdout is closed, and the result goes there; add >/dev/null if you do not want it\n",
        ),
        ("m3dt tasks > /dev/full", {}, 1, "error: the result cannot be written to stdout: No space left on device\n"),
        ("m3dt tasks 2>&- >/dev/null", {}, 0, ""),
        ("m3dt tasks <&- >/dev/null", {}, 0, ""),
        ("m3dt tasks walker-rnu 2>&- >&-", {}, 1, ""),
        ("m3dt behavior list walker-run >/dev/null", {"PYTHONIOENCODING": "ascii"}, 0, ""),
    ],
)
def test_streams(command: str, environment: dict[str, str], code: int, error: str) -> None:
    done = shell(command, **environment)
    assert (done.returncode, done.stderr) == (code, error)


def test_characters_that_an_encoding_lacks_are_escaped() -> None:
    done = shell("m3dt behavior list walker-run; m3dt tasks 'wâlker'", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert "\\xb1" in done.stdout  # ± between a return and its deviation
    assert done.stdout.isascii()
    assert "w\\xe2lker" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tasks", "--no-such-option"), "error: No such option: --no-such-option"),
        (("no-such-command",), "error: No such command 'no-such-command'"),
        (("collect", "walker-run", "--episodes", "0"), "error: Invalid value for '--episodes'"),
        (("info",), "error: Missing argument"),
        (("info", "a", "\x1b[2J\nb"), "error: Got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n"), err.startswith(message)) == (2, "", 1, True), err
    assert err.rstrip().endswith("--help`")
    assert "\x1b" not in err


def test_the_version(run: Run) -> None:
    import m3dt_agent

    assert run("--version") == (0, f"m3dt {m3dt_agent.__version__}\n", "")


def test_quiet_is_the_result_and_errors_only(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    collect = ("collect", "cheetah-vel-3", "--episodes", 1, "--workers", 0, "--root")
    assert "of disk" in run(*collect, tmp_path / "loud", "--json")[2]
    for name, arguments in {
        "before": ("--quiet", *collect, tmp_path / "before"),
        "after": (*collect, tmp_path / "after", "--quiet"),
    }.items():
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, ""), name
        assert json.loads(out)[0]["episodes"] == 1
    assert "walker-rnu" in run("tasks", "walker-rnu", "--quiet")[2]
    assert "M3DT_QUIET" not in os.environ
    assert run("tasks", "--", "--quiet")[0] == 1  # after -- it is a task's name


def in_a_terminal(*arguments: str, **environment: str) -> str:
    """What the program prints on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm-256color", **environment}
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not printed:
            break
    process.wait(60)
    os.close(ours)
    return printed.decode()


def test_escape_codes_only_on_a_terminal_and_none_with_no_color() -> None:
    assert "\x1b[" in in_a_terminal("tasks", "mt10")
    assert "\x1b" not in in_a_terminal("tasks", "mt10", NO_COLOR="1")
    assert "\x1b" not in shell("m3dt tasks mt10; m3dt tasks walker-rnu").stdout


def test_completion_is_on(run: Run) -> None:
    from typer.main import get_command

    options = {name for parameter in get_command(app).params for name in parameter.opts}
    assert {"--install-completion", "--show-completion"} <= options
    done = subprocess.run(
        PROGRAM,
        env={**os.environ, "_M3DT_COMPLETE": "complete_bash", "COMP_WORDS": "m3dt eval zero walker-r", "COMP_CWORD": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["walker-run", "walker-run-backwards"], done.stderr


# -- Ctrl-C --------------------------------------------------------------------------------------------------------------------

BEGUN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import m3dt_program
print("begun", file=sys.stderr, flush=True)
sys.exit(m3dt_program.main())
"""


def interrupted_after(seconds: float, *arguments: str) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGUN, str(ROOT), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    return process.wait(60), process.stderr.read()


def test_ctrl_c_while_packages_are_imported_is_130_without_a_traceback() -> None:
    begun = time.monotonic()
    subprocess.run([*PROGRAM, "tasks"], stdout=subprocess.DEVNULL, check=True)
    whole, randomness = time.monotonic() - begun, random.Random(0)
    for _ in range(6):
        code, err = interrupted_after(randomness.uniform(0.1, 0.7 * whole), "tasks")
        assert code in (0, 130, -signal.SIGINT)  # a shell calls the last one 130 as well
        assert "Traceback" not in err
        if code == 130:
            assert err in ("", "interrupted; nothing was written\n")
    assert interrupted_after(0.1, "tasks") == (130, "")


def children_of(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def has_children(pid: int) -> bool:
    import psutil

    return any(child.status() != psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children())


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_a_collection_whose_workers_are_stopped(tmp_path: Path, presses: int) -> None:
    pytest.importorskip("mujoco")
    command = [
        *PROGRAM,
        "collect",
        "cheetah-vel-3",
        "cheetah-vel-4",
        "--episodes",
        "2000",
        "--workers",
        "2",
        "--root",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".collect/*/[!.]*.safetensors")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        workers = children_of(process.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        while any(has_children(worker) for worker in workers):  # glfw's import asks a process, which complains if we kill it
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        pressed = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - pressed < 15
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("interrupted; run the same command again to continue where it stopped\n")
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def test_main_does_not_touch_the_signals_of_its_caller() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(["tasks", "walker-run", "--json"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
