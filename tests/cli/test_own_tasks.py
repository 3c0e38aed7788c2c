"""Tasks of one's own from their declaration to a fresh process that acts in them, by the commands that a user types.

    own.toml ─► collect --policy ─► train ─► eval ─► push ─► pull ─► act, play

Four kinds of environments: other bounds (Pendulum-v1), MuJoCo's (HalfCheetah-v5), one wider than any of the 160 tasks, and one
with a goal and dictionaries. tests/bank and tests/hub have quick cousins of every part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from huggingface_hub import constants

OWN = """
[swing]
domain = "classic"
obs_dim = 3
act_dim = 1
max_episode_steps = 200
return_scale = 200.0
score = { low = -1500.0, high = 0.0 }
env = "Pendulum-v1"
action_low = [-2.0]
action_high = [2.0]

[half-cheetah]
domain = "mujoco"
obs_dim = 17
act_dim = 6
max_episode_steps = 1000
return_scale = 1000.0
score = { low = 0.0, high = 2000.0, clip = false }
env = "HalfCheetah-v5"

[mirror]
domain = "lines"
obs_dim = 46
act_dim = 28
max_episode_steps = 20
return_scale = 20.0
score = { low = 0.0, high = 20.0 }
env = "m3dt-tests/Mirror-v0"

[point]
domain = "lines"
obs_dim = 3
act_dim = 1
max_episode_steps = 20
return_scale = 10.0
score = "success"
env = "m3dt-tests/Reacher1D-v0"
action_low = [0.0]
action_high = [10.0]
observation = ["goal/at", "observation"]
"""
NOISY = ("--mixture", "custom+0.3:1,custom+1.0:1", "--episodes", 60)
"""Much noise shows how to come back from far away; what the policy would have done without it is what is learned."""
NAMES = ("swing", "half-cheetah", "mirror", "point")

ACTS = """
import json, sys
import numpy as np
from m3dt_agent import M3DTAgent, tasks
agent = M3DTAgent.from_pretrained("alice/own", token="hf_alice")
for task in agent.tasks:
    agent.reset(task.name)
    assert agent.act(np.zeros(task.obs_dim)).shape == (task.act_dim,)
print(json.dumps([[task.name for task in agent.tasks], len(tasks.own_tasks())]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("own_registry")
def test_four_tasks_from_their_declaration_to_a_fresh_process(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    (tmp_path / "token").write_text("hf_alice")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def m3dt(*arguments: object) -> Any:
        code, out, err = run("--import", "own_tasks", "--tasks", "own.toml", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    shown = m3dt("collect", *NAMES, "--policy", "own_policies:make", "--source", "shown", "--episodes", 10)
    demonstrator = {row["task"]: row["mean_normalized_score"] for row in shown}
    m3dt("collect", *NAMES, "--policy", "own_policies:make", "--source", "noisy", *NOISY)
    m3dt("train", *NAMES, "--source", "noisy", "--bank", "bank", "--preset", "quick", "--threads", 1)
    evaluated = m3dt("eval", "bank", "--episodes", 10, "--workers", 2, "--rows", "rows.jsonl")["tasks"]
    scores = {name: task["mean_score"] for name, task in evaluated.items()}
    print(f"demonstrators: {demonstrator}\nagent: {scores}")
    assert scores["swing"] > demonstrator["swing"] - 5
    assert all(scores[name] > 0.9 * demonstrator[name] for name in NAMES)
    with Hub(tmp_path / "hub", tokens={"hf_alice": "alice"}) as hub:
        there = ("--endpoint", hub.endpoint, "--token-file", "token")
        m3dt("push", "bank", "alice/own", "--rows", "rows.jsonl", *there)
        m3dt("pull", "alice/own", "pulled", *there)
        again = m3dt("eval", "pulled", "point", "--episodes", 10, "--workers", 2)["tasks"]
        assert again["point"]["mean_return"] == pytest.approx(evaluated["point"]["mean_return"], abs=1e-4)  # other slots
        fresh = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "M3DT_TASKS": ""}  # it knows none of the tasks
        answer = subprocess.check_output([sys.executable, "-c", ACTS], text=True, env=os.environ | fresh)
        card = hub.read("models", "alice/own", "README.md").decode()
    assert json.loads(answer) == [list(NAMES), 0]
    assert m3dt("play", "point", "--bank", "pulled")["success"] is True
    assert all(f"[{name}]\n" in card and f"| {name} |" in card for name in NAMES)
