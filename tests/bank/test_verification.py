"""How often a bank's files are hashed: once per stage, once per copy or push, and once whenever they are read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from contracts import random_bank, random_datasets

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank, tensor_files
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.config import BackboneConfig, ExpertsConfig, ModelConfig, RouterConfig
from m3dt_agent.data.task_datasets import TaskDatasets

MODEL = ModelConfig(16, 2, 2, n_experts=2, context_length=4, prompt_length=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("data"), ("cheetah-vel-3", "reach"))


@pytest.fixture
def bank(data: TaskDatasets, tmp_path: Path) -> ExpertBank:
    return random_bank(tmp_path / "bank", data, MODEL)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was hashed to be verified since the test began."""
    counts: Counter[str] = Counter()
    compare = tensor_files._compare

    def counting(path: Path, record: FileRecord, sha256: str, size: int) -> None:
        counts[path.name] += 1
        compare(path, record, sha256, size)

    monkeypatch.setattr(tensor_files, "_compare", counting)
    return counts


def names(bank: ExpertBank) -> Counter[str]:
    """Every file of the bank, once."""
    return Counter(Path(name).name for name in bank.manifest.files)


def test_opening_hashes_every_file_once(bank: ExpertBank, hashed: Counter[str]) -> None:
    ExpertBank.open(bank.path)
    assert hashed == names(bank)


def test_the_check_of_sizes_hashes_nothing_until_something_is_read(bank: ExpertBank, hashed: Counter[str]) -> None:
    opened = ExpertBank.open(bank.path, check="sizes")
    assert not hashed
    opened.model()
    assert hashed == names(bank) - Counter(("statistics.safetensors", "prompts.safetensors"))


def test_a_copy_hashes_every_file_once(bank: ExpertBank, hashed: Counter[str], tmp_path: Path) -> None:
    for storage in ("float32", "bfloat16"):
        hashed.clear()
        ExpertBank.open(bank.path, check="sizes").copy_to(tmp_path / storage, storage=storage)
        assert hashed == names(bank)


def test_a_commit_hashes_what_it_writes_only_while_it_writes_it(bank: ExpertBank, hashed: Counter[str]) -> None:
    tensors = bank.read("backbone.safetensors")
    hashed.clear()
    bank.commit({"backbone.safetensors": tensors})
    assert not hashed


def test_a_bank_is_hashed_once_while_it_is_held(bank: ExpertBank, hashed: Counter[str]) -> None:
    with bank.held():
        assert hashed == names(bank)


def test_a_stage_hashes_every_file_once_and_those_that_it_reads_as_it_reads_them(
    data: TaskDatasets, hashed: Counter[str], tmp_path: Path
) -> None:
    """Through the agent, which loads the bank after each stage: at most at the start, for the training and for the agent."""
    agent, settings = M3DTAgent(MODEL, data.tasks), {"steps": 1, "batch_size": 2, "precision": "float32"}
    stages = (BackboneConfig(**settings), ExpertsConfig(**settings, grouping="random"), RouterConfig(**settings))
    for config in stages:
        hashed.clear()
        agent.fit_stage(config.stage, data, bank=tmp_path / "bank", config=config, progress=False)
        of_the_bank = {
            name: times for name, times in hashed.items() if name in names(ExpertBank.open(tmp_path / "bank", check="sizes"))
        }
        assert max(of_the_bank.values()) <= 3, f"{config.stage}: {of_the_bank}"
        assert not [name for name in hashed if name.endswith(".next")]
