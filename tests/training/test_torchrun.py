"""`torchrun … -m m3dt_agent.cli train`: shared between workers, and continued when one is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from m3dt_agent.cli import main
from m3dt_agent.training.checkpoint import newest_checkpoint

NAMES = ["cheetah-vel-20", "cheetah-vel-21"]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mujoco")
    root = tmp_path_factory.mktemp("torchrun") / "datasets"
    assert main(["collect", *NAMES, "--root", str(root), "--episodes", "4", "--workers", "0"]) == 0
    return root


def train_arguments(root: Path, bank: Path, steps: int) -> list[str]:
    settings = ["--preset", "tiny", "--stage", "backbone", "--precision", "float64", "--threads", "1", "--warmup-steps", "0"]
    return ["train", *NAMES, "--root", str(root), "--bank", str(bank), *settings, "--steps", str(steps)]


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--nproc-per-node", "2", "--master-port", str(port), "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "m3dt_agent.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def weights(bank: Path) -> Tensor:
    checkpoint, _ = newest_checkpoint(bank, "backbone")
    assert checkpoint is not None
    return torch.cat([weight.flatten() for _, weight in sorted(checkpoint.read("weights").items())])


@pytest.mark.slow
def test_the_command_line_is_shared_and_one_worker_answers(datasets: Path, tmp_path: Path) -> None:
    process = torchrun(*train_arguments(datasets, tmp_path / "two", 40), "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["stages"]["backbone"] == "done"
    assert err.count("backbone stage: about") == 1
    assert main(train_arguments(datasets, tmp_path / "one", 40)) == 0
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=0, atol=1e-9)
    process = torchrun("train", "--root", str(datasets), "--bank", str(tmp_path / "two"))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("error: stage 'experts' does not share its batches between workers; got 2") == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_comes_back(datasets: Path, tmp_path: Path, victim: int) -> None:
    steps = 400
    process = torchrun(*train_arguments(datasets, tmp_path / "two", steps), "--checkpoint-every", "20", restarts=2)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "two").glob("resume/backbone-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()}
    ranks[str(victim)].kill()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "backbone: continuing from step" in err
    assert main(train_arguments(datasets, tmp_path / "one", steps)) == 0
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
