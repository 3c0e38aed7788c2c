"""Several who push into one folder at once: the bank there has the files of all, and opens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from contracts import random_bank, random_datasets

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import Manifest, expert_file
from m3dt_agent.config import ModelConfig
from m3dt_agent.hub import bank_pushes
from m3dt_agent.hub.bank_stages import stage_manifests
from m3dt_agent.hub.banks import push_bank

N = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    folder = tmp_path_factory.mktemp("whole")
    data = random_datasets(folder / "data", ("cheetah-vel-3", "reacher-easy"))
    config = ModelConfig(8, 1, 2, n_experts=N, context_length=2, prompt_length=1, max_timesteps=60)
    return random_bank(folder / "bank", data, config)


def part(whole: ExpertBank, to: Path, *experts: int) -> ExpertBank:
    return ExpertBank(whole.path, stage_manifests(whole.manifest)[1].with_experts(experts)).copy_to(to)


def holds(folder: Path, whole: ExpertBank, *experts: int) -> None:
    """The folder opens, and the bytes of each expert on the disk are those of the bank that it came from."""
    bank = ExpertBank.open(folder)
    assert bank.finished_experts == experts
    for expert in experts:
        assert (folder / expert_file(expert)).read_bytes() == (whole.path / expert_file(expert)).read_bytes()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in bank.read(expert_file(experts[0])).values())


def test_a_push_in_the_middle_of_another(whole: ExpertBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has read what is there; then the second pushes all that it has; then the first goes on."""
    folder = tmp_path / "shared"
    push_bank(part(whole, tmp_path / "0", 0), folder)
    mine, yours = part(whole, tmp_path / "1", 1), part(whole, tmp_path / "2", 2)
    merge, met = bank_pushes.merge, []

    def meanwhile(theirs: Manifest, ours: Manifest, where: str) -> Manifest:
        if not met:
            met.append(True)
            push_bank(yours, folder)
        return merge(theirs, ours, where)

    monkeypatch.setattr(bank_pushes, "merge", meanwhile)
    assert push_bank(mine, folder).files == (expert_file(1),)
    holds(folder, whole, 0, 1, 2)


def test_many_at_once(whole: ExpertBank, tmp_path: Path) -> None:
    """Also into a folder that is not there yet."""
    parts = [part(whole, tmp_path / str(expert), expert) for expert in range(N)]
    for folder in (tmp_path / "one", tmp_path / "two"):
        together = threading.Barrier(N)

        def push(bank: ExpertBank, folder: Path = folder, wait: Callable[[], int] = together.wait) -> None:
            wait()
            push_bank(bank, folder)

        with ThreadPoolExecutor(N) as pool:
            list(pool.map(push, parts))
        holds(folder, whole, *range(N))


def test_a_training_run_that_commits_meanwhile(whole: ExpertBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared"
    push_bank(part(whole, tmp_path / "0", 0), folder)
    trained, mine = ExpertBank.open(folder), part(whole, tmp_path / "1", 1)
    merge, met = bank_pushes.merge, []

    def meanwhile(theirs: Manifest, ours: Manifest, where: str) -> Manifest:
        if not met:
            met.append(True)
            trained.commit({expert_file(3): whole.read(expert_file(3))})
        return merge(theirs, ours, where)

    monkeypatch.setattr(bank_pushes, "merge", meanwhile)
    push_bank(mine, folder)
    holds(folder, whole, 0, 1, 3)
