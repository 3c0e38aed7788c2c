"""kill -9 anywhere in a stage, continue, and the bank is bit for bit the one of an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKPOINT_EVERY = 2  # as in killed_run.py


def check_kills(folder: Path, stages: list[str], seed: int, n_random: int) -> None:
    script = Path(__file__).with_name("killed_run.py")
    command = [sys.executable, str(script), str(folder), str(seed), str(n_random), *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["stage"] for result in results] == stages
    for result in results:
        for name, killed in result["killed"].items():
            at = f"killed at events {killed['points']} ({killed['at']}) of {result['events']}"
            check_outcome(result["whole"], killed, f"{result['stage']}, {name}: {at}")


def check_outcome(whole: dict[str, Any], killed: dict[str, Any], told: str) -> None:
    assert all(killed["killed"]), told
    assert killed["files"] == whole["files"], told
    assert killed["logs"] == whole["logs"], told
    assert killed["leftovers"] == [], told
    assert set(killed["steps"]) == set(whole["steps"]), told
    assert len(whole["steps"]) == len(set(whole["steps"])) >= 12
    repeated = len(killed["steps"]) - len(whole["steps"])
    assert repeated <= CHECKPOINT_EVERY * len(killed["points"]), f"{told}: {repeated} steps were done again"


def test_a_killed_stage_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    check_kills(tmp_path, ["backbone"], seed=1, n_random=1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["backbone", "experts", "router", "growth"])
@pytest.mark.parametrize("seed", [2, 3])
def test_a_stage_killed_at_ten_random_moments_ends_as_if_it_had_not_been(tmp_path: Path, stage: str, seed: int) -> None:
    check_kills(tmp_path, [stage], seed, n_random=10)
