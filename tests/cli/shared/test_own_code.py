"""`m3dt --import MODULE`: a module of one's own registers environments for a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

MODULE = """
import gymnasium

gymnasium.register("a-test/Swing-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=5)
"""
TASK = """
[own-swing]
obs_dim = 3
act_dim = 1
max_episode_steps = 5
return_scale = 1.0
score = "return"
env = "a-test/Swing-v0"
action_low = [-2.0]
action_high = [2.0]
"""


@pytest.mark.usefixtures("own_registry")
def test_a_module_registers_environments_here_and_in_workers(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs_of_a_test.py").write_text(MODULE)
    (tmp_path / "own.toml").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # which also takes out, at the end, what the command puts in
    command = ("--tasks", "own.toml", "eval", "zero", "own-swing", "--episodes", 1, "--workers")
    code, _, err = run(*command, 2)
    assert (code, "m3dt --import MODULE" in err, err.count("\n")) == (1, True, 1)  # before a worker is started
    code, out, err = run("--import", "envs_of_a_test", *command, 0)  # tests/envs/test_make.py does the same with workers
    assert (code, "= return" in out) == (0, True), err
    del gym.registry["a-test/Swing-v0"], sys.modules["envs_of_a_test"]
    code, _, err = run("--import", "no_such_module", *command, 0)
    assert (code, "--import no_such_module: the module cannot be imported" in err) == (1, True)
