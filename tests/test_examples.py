"""Every example runs, from another folder, on a bank of random weights or that of the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contracts import random_bank, random_datasets
from hub_server import Hub

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.builtin import open_bank
from m3dt_agent.config import ModelConfig
from m3dt_agent.evaluation import read_rows
from m3dt_agent.tasks import task_set

EXAMPLES = Path(__file__).parents[1] / "examples"
MT10 = [task.name for task in task_set("mt10")]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    data = random_datasets(folder / "data", [*MT10, "cheetah-vel-25"], episodes=3)
    return random_bank(folder / "bank", data, ModelConfig.preset("tiny", context_length=2, prompt_length=1)).path


def run(name: str, *arguments: str | Path, where: Path, **environment: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *("act.py", "evaluate_mt10.py", "adapters.py", "act_without_torch.py"),
        *("publish_a_bank.py", "resume_from_hub.py", "fine_tune.py", "own_task.py"),
    }


def test_act(bank: Path, tmp_path: Path) -> None:
    out = run("act.py", bank, "cheetah-vel-25", where=tmp_path)
    assert out.startswith("cheetah-vel-25: return -")
    assert out == run("act.py", bank, "cheetah-vel-25", "0", where=tmp_path)


@pytest.mark.slow
def test_evaluate_mt10(bank: Path, tmp_path: Path) -> None:
    out = run("evaluate_mt10.py", bank, "1", where=tmp_path)
    for policy in ("m3dt-mixture", "random"):
        assert f"{policy}: mean " in out
        assert [row.task for row in read_rows(tmp_path / f"rows-{policy}.jsonl")] == MT10


@pytest.mark.slow  # tests/test_adapters.py has quick ones
def test_adapters(bank: Path, tmp_path: Path) -> None:
    metaworld_task = next(task.name for task in task_set("mt10") if task.domain == "metaworld")
    out = run("adapters.py", bank, "cheetah-vel-25", metaworld_task, where=tmp_path)
    assert [line.split(":")[0] for line in out.splitlines()] == ["Stable-Baselines3", "Meta-World", "Gymnasium"]


@pytest.mark.slow  # docs/own-tasks.md does the same in parts
def test_own_task(tmp_path: Path) -> None:
    demonstrator, agent = run("own_task.py", where=tmp_path).splitlines()
    assert float(agent.split(": ")[1]) > float(demonstrator.split(": ")[1]) - 5


@pytest.mark.slow
def test_fine_tune(tmp_path: Path) -> None:
    names = ["cheetah-vel-25"]
    random_datasets(tmp_path / "data", names, episodes=3)
    out = run("fine_tune.py", "./published", tmp_path / "data", *names, "--steps", "4", where=tmp_path)  # builtin:mt160
    assert [line.split(":")[0] for line in out.splitlines()] == ["before", "after", "published"]
    published = ExpertBank.open(tmp_path / "published")
    assert published.manifest.tasks == tuple(names)
    assert published.config == open_bank("builtin:mt160").config


@pytest.mark.slow  # tests/hub does the same in parts
def test_publish_a_bank_and_resume_from_hub(tmp_path: Path) -> None:
    names = ["cheetah-vel-25", "cheetah-vel-3"]
    random_datasets(tmp_path / "data", names, episodes=3)
    (tmp_path / "token").write_text("hf_alice\n")
    with Hub(tmp_path / "hub", tokens={"hf_alice": "alice"}) as hub:
        there = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        arguments = ("alice/bank", tmp_path / "data", *names, "--steps", "5", "--token-file", tmp_path / "token")
        out = run("publish_a_bank.py", *arguments, where=tmp_path, **there)
        assert [line.split(":")[0] for line in out.splitlines()] == ["backbone", "experts", "router", "card with scores"]
        assert set(hub.repos["models", "alice/bank"].tags) == {"stage-backbone", "stage-experts", "stage-router"}
        assert b"model-index" in hub.read("models", "alice/bank", "README.md")
        for stage in ("backbone", "experts"):
            out = run(
                "resume_from_hub.py", "alice/bank", stage, tmp_path / "data", f"from-{stage}", "5", where=tmp_path, **there
            )
            assert "acts with: mixture" in out
            assert ExpertBank.open(tmp_path / f"from-{stage}").content_hash == ExpertBank.open(tmp_path / "bank").content_hash
