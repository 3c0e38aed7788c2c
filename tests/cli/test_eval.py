"""`m3dt eval --rows`: nothing is lost, the path is checked before anything is played, shards may share a file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from m3dt_agent.scores.rows import read_rows
from m3dt_agent.tasks import TASKS

pytest.importorskip("mujoco")

NAMES = [task.name for task in TASKS if task.domain == "cheetah-vel"][:10]
Run = Callable[..., tuple[int, str, str]]


def test_ctrl_c_says_what_is_kept_and_the_same_command_continues(tmp_path: Path, run: Run) -> None:
    rows = tmp_path / "rows.jsonl"
    options = [*NAMES, "--episodes", "3", "--workers", "0", "--slots", "2", "--rows", str(rows), "--json"]
    command = [sys.executable, "-m", "m3dt_agent.cli", "eval", "random", *options]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not rows.exists() or not rows.stat().st_size:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    kept = len(read_rows(rows))
    assert (running.returncode, out) == (130, "")
    assert 0 < kept < 30
    assert f"{kept} of 30 episodes are in {rows}" in err
    assert "run the same command again to continue" in err
    code, out, _ = run("eval", "random", *options)
    assert (code, json.loads(out)["episodes"]) == (0, 30)
    assert json.loads(run("eval", "random", *options[:-3], "--json")[1]) == json.loads(out)
    assert len(read_rows(rows)) == 30


def test_shards_one_after_the_other_share_a_file(tmp_path: Path, run: Run) -> None:
    shared, whole = tmp_path / "shared.jsonl", tmp_path / "whole.jsonl"
    options = ("eval", "random", *NAMES[:3], "--episodes", 1, "--workers", 0)
    for shard in ("2/2", "1/2"):
        assert run(*options, "--rows", shared, "--shard", shard)[0] == 0
    assert run(*options, "--rows", whole)[0] == 0
    assert shared.read_bytes() == whole.read_bytes()


def test_a_file_of_others_is_refused_before_a_video_or_an_episode_is_played(tmp_path: Path, run: Run) -> None:
    rows, video = tmp_path / "rows.jsonl", tmp_path / "video.gif"
    assert run("eval", "zero", NAMES[0], "--episodes", 1, "--workers", 0, "--rows", rows)[0] == 0
    before = rows.read_bytes()
    code, out, err = run("eval", "random", NAMES[0], "--episodes", 10_000, "--rows", rows, "--video", video)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "rows.jsonl, line 1 is a row of another evaluation: policy 'zero' there, 'random' here" in err
    assert (rows.read_bytes(), video.exists()) == (before, False)
