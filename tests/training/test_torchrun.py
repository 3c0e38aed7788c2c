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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launched(options: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", "m3dt_agent.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    options = ["--nproc-per-node", "2", "--master-port", str(free_port()), "--max-restarts", str(restarts)]
    return launched(options, list(arguments))


def await_listener(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def await_checkpoint(bank: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not list(bank.glob("resume/backbone-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    await_checkpoint(tmp_path / "two", process)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()}
    ranks[str(victim)].kill()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "backbone: continuing from step" in err
    assert main(train_arguments(datasets, tmp_path / "one", steps)) == 0
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.slow
def test_a_machine_that_goes_leaves_the_rest_to_the_others(datasets: Path, tmp_path: Path) -> None:
    steps, port = 400, free_port()
    elastic = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    elastic += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", "--rdzv-conf", "last_call_timeout=20"]
    arguments = [*train_arguments(datasets, tmp_path / "two", steps), "--checkpoint-every", "20"]
    stays = launched(elastic, arguments)
    await_listener(port, stays)  # so that the store of both lies with the one that stays
    goes = launched(elastic, arguments)
    await_checkpoint(tmp_path / "two", stays)
    for process in (*psutil.Process(goes.pid).children(recursive=True), goes):
        process.kill()
    _, before = goes.communicate()
    _, err = stays.communicate(timeout=400)
    assert "on each of 2 workers" in before + err
    assert stays.returncode == 0, err
    assert "backbone: continuing from step" in err
    assert main(train_arguments(datasets, tmp_path / "one", steps)) == 0
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
