"""`m3dt convert` in both directions, on real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts import random_bank, random_datasets

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.task_datasets import TaskDatasets

NAMES = ("reach", "walker-run", "cheetah-vel-20")
CONFIG = ModelConfig(32, 2, 2, n_experts=3, context_length=20, prompt_length=5, residual="published")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def data(root: Path) -> TaskDatasets:
    return random_datasets(root, NAMES)


@pytest.fixture
def bank(data: TaskDatasets, tmp_path: Path) -> ExpertBank:
    return random_bank(tmp_path / "bank", data, CONFIG)


def test_there_and_back(run: Run, bank: ExpertBank, root: Path, tmp_path: Path) -> None:
    code, out, err = run("convert", bank.path, "theirs", "--to-published", "--json")
    assert (code, err) == (0, "")
    files = json.loads(out)["files"]
    assert files == {str(p.relative_to("theirs")): p.stat().st_size for p in Path("theirs").rglob("*") if p.is_file()}
    assert len(files) == 5
    groups = {f"expert_{e}": [name] for e, name in enumerate(("walker-run", "cheetah-vel-20", "reach-v2"))}
    Path("groups.json").write_text(json.dumps(groups))
    options = ("--root", root, "--source", "random", "--groups", "groups.json", "--n-heads", 2, "--json")
    code, out, err = run("convert", "theirs", "back", *NAMES, *options)
    assert code == 0, err
    document = json.loads(out)
    assert document["tasks"] == list(NAMES)
    assert document["groups"] == {"walker-run": 0, "cheetah-vel-20": 1, "reach": 2}
    assert set(document["stages"].values()) == {"done"}
    back = ExpertBank.open("back")
    assert back.config == CONFIG
    assert back.data_config.target_return == "published"
    weights = [name for name in bank.manifest.files if name not in ("statistics.safetensors", "prompts.safetensors")]
    assert len(weights) == 5
    assert all(back.manifest.files[name] == bank.manifest.files[name] for name in weights)


def test_tables_for_people(run: Run, bank: ExpertBank, root: Path) -> None:
    code, out, _ = run("convert", bank.path, "theirs", "--to-published")
    assert code == 0
    assert "moe__iter_0" in out
    code, out, _ = run("convert", "theirs", "back", *NAMES, "--root", root, "--n-heads", 2)
    assert code == 0
    assert "3 experts per block" in out


def test_a_bank_into_a_smaller_one_and_back(run: Run, bank: ExpertBank, tmp_path: Path) -> None:
    code, out, err = run("convert", bank.path, "small", "--storage", "bfloat16", "--json")
    assert (code, err) == (0, "")
    document, small = json.loads(out), ExpertBank.open("small")
    assert (document["storage"], document["content_hash"]) == ("bfloat16", small.content_hash)
    assert sum(document["files"].values()) < 0.75 * sum(record.bytes for record in bank.manifest.files.values())
    assert run("convert", "small", "large", "--storage", "float32", "--json")[0] == 0
    found, expected = ExpertBank.open("large").model().state_dict(), small.model().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    code, out, _ = run("info", "small")
    assert code == 0
    assert "stored as bfloat16" in out
    assert run("convert", bank.path, "smaller", "--storage", "int8")[0] == 2


def test_errors_are_one_line_that_names_what_came(run: Run, bank: ExpertBank, data: TaskDatasets, root: Path) -> None:
    standard = random_bank(Path("standard"), data, ModelConfig.preset("tiny"))
    cases = {
        ("nowhere", "out", "reach", "--root", root): "nowhere is not a folder",
        ("theirs", "out", "--root", root): "no tasks named",
        ("theirs", "out", "reech", "--root", root): "did you mean reach",
        ("theirs", "out", "reach", "--root", root, "--allow-standard-residual"): "goes with --to-published",
        ("nowhere", "out", "--to-published"): "no bank at nowhere",
        (bank.path, "out", "reach", "--to-published"): "takes neither tasks nor --groups",
        (bank.path, "out", "reach", "--storage", "bfloat16"): "--storage takes neither tasks nor --groups",
        (bank.path, "out", "--to-published", "--storage", "bfloat16"): "two conversions",
        (bank.path, "out", "--storage", "bfloat16", "--allow-standard-residual"): "goes with --to-published",
        ("nowhere", "out", "--storage", "bfloat16"): "no bank at nowhere",
        (bank.path, bank.path, "--storage", "bfloat16"): "not an empty folder",
        (standard.path, "out", "--to-published"): "residual='standard'",
        (bank.path, standard.path, "--to-published"): "not an empty folder",
    }
    for arguments, message in cases.items():
        code, out, err = run("convert", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments
        assert message in err
    assert not Path("out").exists()
    assert run("convert", standard.path, "out", "--to-published", "--allow-standard-residual")[0] == 0
    assert run("convert", bank.path)[0] == 2
