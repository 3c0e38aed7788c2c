"""`m3dt collect` with policies of one's own, and with a bank's agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import random_bank, random_datasets

from m3dt_agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.episodes import read_episodes, read_metadata
from m3dt_agent.tasks import get

POLICY = """
calls = []

def make(task):
    return lambda observation: [0.5] * task.act_dim

number = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policies_of_a_test.py").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # which also takes out, at the end, what the command puts in


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_of_ones_own_acts(run: Any, tmp_path: Path, workers: int) -> None:
    options = ("--episodes", 3, "--root", tmp_path / "data", "--workers", workers, "--source", "own")
    code, _, err = run("collect", "cheetah-vel-3", "--policy", "policies_of_a_test:make", *options)
    assert code == 0, err
    for episode in read_episodes(tmp_path / "data/m3dt/cheetah-vel-3/own-v0"):
        assert (episode.actions == 0.5).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("policies_of_a_test:mak", "has no function 'mak'"),
        ("policies_of_a_test", "MODULE:FUNCTION"),
        ("policies_of_a_test:number", "has no function 'number'"),
        (":make", "MODULE:FUNCTION"),
    ],
)
def test_a_policy_that_is_none_is_one_line(run: Any, tmp_path: Path, name: str, message: str) -> None:
    code, out, err = run("collect", "cheetah-vel-3", "--policy", name, "--root", tmp_path / "data")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not (tmp_path / "data").exists()


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    data = random_datasets(tmp_path / "before", ["cheetah-vel-3"], episodes=4, length=6)
    config = ModelConfig(16, 1, 2, n_experts=2, context_length=3, prompt_length=2)
    return Path(random_bank(tmp_path / "bank", data, config).path)


def test_a_bank_acts_and_its_demonstrator_labels(run: Any, tmp_path: Path, bank: Path) -> None:
    options = ("--root", tmp_path / "data", "--workers", 0, "--episodes", 2, "--source", "aggregated")
    code, _, err = run("collect", "cheetah-vel-3", "--actor", bank, "--label-with", "expert", *options)
    assert code == 0, err
    agent, expert = M3DTAgent.load(bank), behavior_policy(get("cheetah-vel-3"), "expert")
    for episode in read_episodes(tmp_path / "data/m3dt/cheetah-vel-3/aggregated-v0"):
        assert episode.demonstrator_actions is not None
        agent.reset("cheetah-vel-3")
        rewards = [None, *episode.rewards.tolist()]  # its return-to-go falls by what it earns
        for t, observation in enumerate(episode.observations[:-1]):
            np.testing.assert_allclose(episode.actions[t], agent.act(observation, reward=rewards[t]), atol=1e-5)
            np.testing.assert_array_equal(episode.demonstrator_actions[t], expert(observation))
    metadata = read_metadata(tmp_path / "data/m3dt/cheetah-vel-3/aggregated-v0")
    assert agent.content_hash in metadata["m3dt_collect"]
    assert str(bank) not in metadata["m3dt_collect"]  # a bank that was moved is the same


def test_a_bank_that_cannot_act_is_refused(run: Any, tmp_path: Path, bank: Path) -> None:
    for task, who, message in (("cheetah-vel-4", bank, "cheetah-vel-4"), ("cheetah-vel-3", "nowhere", "nowhere")):
        code, _, err = run("collect", task, "--actor", who, "--root", tmp_path / "data")
        assert (code, message in err) == (1, True), err
    code, _, err = run("collect", "cheetah-vel-3", "--actor", bank, "--weights", "x")
    assert (code, "--weights and --actor each say who acts" in err) == (1, True)


def test_policy_and_weights_exclude_each_other(run: Any) -> None:
    code, _, err = run("collect", "cheetah-vel-3", "--policy", "policies_of_a_test:make", "--weights", "x")
    assert (code, "give one of them" in err) == (1, True)
