"""`m3dt collect` with policies of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    from m3dt_agent.data.episodes import read_episodes

    for episode in read_episodes(tmp_path / "data/m3dt/cheetah-vel-3/own-v0"):
        assert (episode.actions == 0.5).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("policies_of_a_test:mak", "has no attribute 'mak'"),
        ("policies_of_a_test", "MODULE:FUNCTION"),
        ("policies_of_a_test:number", "is no function"),
        (":make", "MODULE:FUNCTION"),
    ],
)
def test_a_policy_that_is_none_is_one_line(run: Any, tmp_path: Path, name: str, message: str) -> None:
    code, out, err = run("collect", "cheetah-vel-3", "--policy", name, "--root", tmp_path / "data")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not (tmp_path / "data").exists()


def test_policy_and_weights_exclude_each_other(run: Any) -> None:
    code, _, err = run("collect", "cheetah-vel-3", "--policy", "policies_of_a_test:make", "--weights", "x")
    assert (code, "give one of them" in err) == (1, True)
