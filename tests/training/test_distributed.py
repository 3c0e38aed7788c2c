"""Several workers against one: the same weights, up to rounding, whoever holds which windows; and what happens when one fails.

Workers are real processes over loopback. Everything is float64, with dropout, without warm-up; what is compared is how far the
weights went: ‖Δw - Δw₁‖ ≤ 1e-6·‖Δw₁‖, w₁ being those of one worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.training import backbone, fit_stage, router
from m3dt_agent.training.checkpoint import newest_checkpoint, training_lock
from m3dt_agent.training.distributed import ALONE, World, agreed_name, joined, require_one_worker
from m3dt_agent.training.stage_inputs import StageInputs

pytestmark = pytest.mark.timeout(120)
MakeBank = Callable[..., ExpertBank]
STEPS = 50
SHARED: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 7,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "precision": "float64",
    "threads": 1,
    "log_every": 10,
}
ROUTER = {"concentrate": 0.05, "concentrate_after": 0.5, "skip_below": 0.3}


@dataclass(frozen=True)
class Outcome:
    """What the workers of one run exited with and said."""

    statuses: list[int]
    said: list[str]


class Workers:
    """Runs actions of `worker_processes.py` in forks of one process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, action: str, size: int, **arguments: Any) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"action": action, "size": size, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def fit(self, size: int, bank: ExpertBank, stage: str, **config: Any) -> None:
        """Fits a stage, and succeeds."""
        outcome = self.run("fit", size, bank=str(bank.path), stage=stage, config=SHARED | config)
        assert outcome.statuses == [0] * size, outcome.said


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    program = Path(__file__).with_name("worker_processes.py")
    with subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Workers(process)
        assert process.stdin is not None
        process.stdin.close()


def weights(bank: ExpertBank, run: str) -> dict[str, Tensor]:
    """In float64, of the newest checkpoint."""
    checkpoint, problems = newest_checkpoint(bank.path, run)
    assert checkpoint is not None
    assert not problems
    return checkpoint.read("weights")


def way(bank: ExpertBank, run: str, start: dict[str, Tensor]) -> Tensor:
    """How far the weights of a run went."""
    return torch.cat([(weight - start[name]).flatten() for name, weight in weights(bank, run).items()])


def assert_same_way(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.norm() > 0.05
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def backbone_start(data: TaskDatasets, bank: ExpertBank) -> dict[str, Tensor]:
    run = next(backbone.runs(StageInputs(data=data, bank=bank, config=BackboneConfig(**SHARED))))
    return {name: p.detach().double() for name, p in run.parameters.items()}


@pytest.fixture
def one(data: TaskDatasets, make_bank: MakeBank) -> ExpertBank:
    """A backbone of one worker."""
    bank = make_bank("one")
    fit_stage("backbone", data, bank, BackboneConfig(**SHARED), progress=False)
    return bank


@pytest.fixture
def with_experts(data: TaskDatasets, make_bank: MakeBank) -> ExpertBank:
    bank = make_bank("experts")
    shared = SHARED | {"learning_rate": 3e-3, "precision": "float32"}
    fit_stage("backbone", data, bank, BackboneConfig(**shared), progress=False)
    fit_stage("experts", data, bank, ExpertsConfig(**shared, grouping="random"), progress=False)
    return bank


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_backbone_of_several_workers_is_that_of_one(
    data: TaskDatasets, make_bank: MakeBank, one: ExpertBank, workers: Workers, size: int
) -> None:
    bank = make_bank("several")
    start = backbone_start(data, bank)
    workers.fit(size, bank, "backbone")
    assert_same_way(way(bank, "backbone", start), way(one, "backbone", start))
    ours, theirs = (
        np.genfromtxt(b.path / "logs/backbone.csv", delimiter=",", names=True)[["step", "loss", "grad_norm"]].tolist()
        for b in (bank, one)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_router_of_several_workers_is_that_of_one(
    data: TaskDatasets, with_experts: ExpertBank, tmp_path: Path, workers: Workers, size: int
) -> None:
    one, several = (with_experts.copy_to(tmp_path / name) for name in ("one", "several"))
    config = RouterConfig(**SHARED | ROUTER)
    start = {
        name: p.detach().double()
        for name, p in next(router.runs(StageInputs(data=data, bank=one, config=config))).parameters.items()
    }
    fit_stage("router", data, one, config, progress=False)
    workers.fit(size, several, "router", **ROUTER)
    assert_same_way(way(several, "router", start), way(one, "router", start))
    ours, theirs = (
        np.genfromtxt(b.path / "logs/router.csv", delimiter=",", names=True)[["loss", "experts_kept"]].tolist()
        for b in (several, one)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert 0.3 < theirs[-1][1] < 0.99  # some experts were skipped


def test_a_run_continues_with_another_number_of_workers(
    data: TaskDatasets, make_bank: MakeBank, one: ExpertBank, workers: Workers
) -> None:
    bank = make_bank("several")
    start = backbone_start(data, bank)
    workers.fit(4, bank, "backbone", steps=15)
    workers.fit(2, bank, "backbone", steps=35)
    fit_stage("backbone", data, bank, BackboneConfig(**SHARED), progress=False)
    assert_same_way(way(bank, "backbone", start), way(one, "backbone", start))


def test_all_stop_when_conflict_has_peaked(data: TaskDatasets, make_bank: MakeBank, workers: Workers) -> None:
    early = {"conflict_every": 2, "early_stop": True, "conflict_patience": 2}
    one, two = make_bank("one"), make_bank("two")
    fit_stage("backbone", data, one, BackboneConfig(**SHARED | early), progress=False)
    workers.fit(2, two, "backbone", **early)
    states = [newest_checkpoint(bank.path, "backbone")[0].state for bank in (one, two)]  # type: ignore[union-attr]
    assert states[0].step == states[1].step < STEPS
    np.testing.assert_allclose(states[0].conflicts, states[1].conflicts, rtol=1e-6)


def test_precision_is_settled_by_the_first_worker(make_bank: MakeBank, workers: Workers) -> None:
    bank = make_bank()
    workers.fit(2, bank, "backbone", precision="auto", steps=3)
    bank.refresh()
    assert bank.manifest.stages["backbone"]["config"]["precision"] in ("float32", "bfloat16")
    assert "workers" not in str(bank.manifest.stages)


def test_only_the_first_worker_writes_and_speaks(make_bank: MakeBank, workers: Workers) -> None:
    bank = make_bank()
    config = SHARED | {"steps": 4, "checkpoint_every": 2, "log_every": 2}
    first, second = workers.run("fit_and_write", 2, bank=str(bank.path), stage="backbone", config=config).said
    assert [first.count(word) for word in ("checkpoint\n", "commit\n", "log\n")] == [4, 1, 2]
    assert "2 workers" in first
    assert second == ""
    first, second = workers.run("fit", 2, bank=str(bank.path), stage="backbone", config=None).said
    assert "nothing to do" in first
    assert second == ""


def test_the_first_worker_groups_and_all_know(make_bank: MakeBank, workers: Workers) -> None:
    bank = make_bank()
    workers.fit(2, bank, "backbone", steps=3)
    outcome = workers.run("group", 2, bank=str(bank.path))
    assert outcome.statuses == [0, 0], outcome.said
    bank.refresh()
    assert [json.loads(said.splitlines()[-1]) for said in outcome.said] == [bank.groups] * 2


def test_hooks_see_all_gradients_and_are_given_to_every_worker(make_bank: MakeBank, tmp_path: Path, workers: Workers) -> None:
    bank = make_bank()
    found = {}
    for size, steps in ((1, [20]), (2, [7, 20])):
        arguments = {"bank": str(bank.path), "folder": str(tmp_path / str(size)), "steps": steps, "config": SHARED}
        outcome = workers.run("train_with_hooks", size, **arguments)
        assert outcome.statuses == [0] * size, outcome.said
        checkpoint, _ = newest_checkpoint(tmp_path / str(size), "backbone")
        assert checkpoint is not None
        found[size] = checkpoint.read("weights")
    for name, weight in found[1].items():
        torch.testing.assert_close(found[2][name], weight, rtol=0, atol=1e-9)


def test_fewer_windows_than_workers_are_refused_by_name(make_bank: MakeBank, workers: Workers) -> None:
    outcome = workers.run("fit", 4, bank=str(make_bank().path), stage="backbone", config=SHARED | {"batch_size": 3})
    assert outcome.statuses == [1] * 4
    assert "ConfigError: batch_size=3 cannot be shared by 4 workers" in outcome.said[0]
    for other in outcome.said[1:]:
        assert "WorkerError: worker 0 failed: ConfigError: batch_size=3" in other


def test_stage_2_is_refused(with_experts: ExpertBank, workers: Workers) -> None:
    with pytest.raises(ConfigError, match=r"--ray, or some on each with --only-experts"):
        require_one_worker(World(0, 2))
    outcome = workers.run("fit", 2, bank=str(with_experts.path), stage="experts", config=None)
    assert outcome.statuses == [1, 1]
    assert all("--only-experts" in said for said in outcome.said)


def test_a_bank_that_somebody_trains_is_refused_everywhere(make_bank: MakeBank, workers: Workers) -> None:
    bank = make_bank()
    with training_lock(bank.path):
        outcome = workers.run("fit", 2, bank=str(bank.path), stage="backbone", config=SHARED)
    assert outcome.statuses == [1, 1]
    assert "BankError: another process is training bank" in outcome.said[0]
    assert "WorkerError: worker 0 failed: BankError" in outcome.said[1]


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_hear_at_once_of_a_worker_that_is_killed(make_bank: MakeBank, workers: Workers, lost: int) -> None:
    began = time.monotonic()
    outcome = workers.run("die_at", 2, bank=str(make_bank().path), config=SHARED, rank=lost, step=5, how="kill")
    assert (outcome.statuses[lost], outcome.statuses[1 - lost]) == (-9, 1)
    assert "WorkerError: a worker was lost" in outcome.said[1 - lost]
    assert "continues from its last checkpoint" in outcome.said[1 - lost]
    assert time.monotonic() - began < 30


def test_the_others_hear_of_a_worker_that_fails_and_goes_on_to_other_things(make_bank: MakeBank, workers: Workers) -> None:
    outcome = workers.run("die_at", 2, bank=str(make_bank().path), config=SHARED, rank=1, step=5, how="raise")
    assert outcome.statuses == [1, 0], outcome.said
    assert "WorkerError: a worker was lost" in outcome.said[0]
    ended = [float(said.rpartition("ended at")[2]) for said in outcome.said]
    assert ended[0] < ended[1] - 2


@given(n=st.integers(1, 300), size=st.integers(1, 40))
def test_rows_are_cut_as_numpy_cuts(n: int, size: int) -> None:
    if n < size:
        with pytest.raises(ConfigError, match=f"batch_size={n} cannot be shared by {size} workers"):
            World(0, size).rows(n)
        return
    expected = np.array_split(np.arange(n), size)
    assert [list(World(rank, size).rows(n)) for rank in range(size)] == [part.tolist() for part in expected]


def test_a_process_of_its_own_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu") as world, world.main_first():
        assert world is ALONE
        assert world.from_main(lambda: 3) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2 is set without RANK, MASTER_ADDR, MASTER_PORT"), joined("cpu"):
        pass


def test_workers_agree_on_a_name_whatever_earlier_ones_left_in_the_store() -> None:
    server, found = dist.TCPStore("127.0.0.1", 0, is_master=True), []
    for size in (3, 3, 2):

        def agree(rank: int, size: int = size) -> str:
            return agreed_name(dist.TCPStore("127.0.0.1", server.port), rank, size)

        with ThreadPoolExecutor(size) as pool:
            names = list(pool.map(agree, reversed(range(size))))
        assert len(set(names)) == 1
        found.append(names[0])
    assert len(set(found)) == 3
