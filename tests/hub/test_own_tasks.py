"""Banks and datasets of tasks that are not among the 160, over the Hub and into a process that knows none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import random_datasets
from hub_server import Hub
from huggingface_hub import ModelCard
from own_tasks import POINT, SWING, WIDE

from m3dt_agent import BackboneConfig, DataConfig, EvalConfig, M3DTAgent, ModelConfig, TaskDatasets, tasks
from m3dt_agent.cli.info import describe_bank
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.episodes import read_episodes
from m3dt_agent.errors import DatasetError, M3DTError
from m3dt_agent.evaluation import evaluate
from m3dt_agent.hub.cards import model_card
from m3dt_agent.hub.datasets import pull_datasets, push_datasets
from m3dt_agent.scores.plots import save_score_figure

pytestmark = pytest.mark.usefixtures("own_registry")
OWN = (SWING, POINT, WIDE)

ACTS = """
import json, sys
import numpy as np
from m3dt_agent import M3DTAgent, tasks
agent = M3DTAgent.from_pretrained("alice/own", token="hf_alice")
found = {}
for task in agent.tasks:
    agent.reset(task.name)
    found[task.name] = agent.act(np.full(task.obs_dim, 0.25)).tolist()
print(json.dumps([found, [task.name for task in tasks.own_tasks()]]))
"""


def test_a_bank_goes_over_the_hub_into_a_process_that_knows_none_of_its_tasks(lfs_hub: Hub, tmp_path: Path) -> None:
    for spec in OWN:
        tasks.register(spec)
    collect(OWN, tmp_path / "data", CollectConfig(levels={"random": 1.0}, episodes=4), workers=0)
    data = TaskDatasets.open(tmp_path / "data", OWN, config=DataConfig(n_prompts=1))
    agent = M3DTAgent(ModelConfig.preset("tiny").for_tasks(OWN), OWN)
    agent.fit_stage("backbone", data, bank=tmp_path / "bank", config=BackboneConfig(steps=2, batch_size=4), progress=False)
    rows = evaluate(agent, [*OWN], EvalConfig(episodes=1, workers=0), progress=False)
    agent.push_to_hub("alice/own", token="hf_alice", rows=rows)
    expected = {}
    for task in OWN:
        agent.reset(task.name)
        expected[task.name] = agent.act(np.full(task.obs_dim, 0.25)).tolist()
    answer = subprocess.check_output([sys.executable, "-c", ACTS], text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert json.loads(answer) == [expected, []]
    tasks.registry._own.clear()
    card = model_card(agent.bank, "alice/own", rows=rows)  # type: ignore[arg-type]
    assert all(f"[{task.name}]\n" in card and f"| {task.name} | {task.domain} | 1 |" in card for task in OWN)
    assert "make_env(agent.tasks[0])  # once you have registered" in card
    returns = next(row.episode_return for row in rows if row.task == WIDE.name)
    assert f"| {WIDE.name} | lines | 1 | {returns:,.1f} | = return |" in card
    assert "no mean counts them" in card
    assert "Episodes of other tasks that have success run their full length." in card
    assert "Meta-World episodes" not in card
    assert f"{WIDE.name} (" not in card.partition("### Where it is weak")[2]  # a return is not below 50
    results = ModelCard(card).data.eval_results
    assert {(one.dataset_type, one.metric_type) for one in results} >= {
        ("Pendulum-v1", "normalized_score"),
        ("m3dt-tests/Wide-v0", "mean_return"),
    }
    document = describe_bank(agent.bank)  # type: ignore[arg-type]
    assert list(document["specs"]) == [task.name for task in OWN]


def test_rows_of_tasks_that_nobody_knows_are_shown_all_the_same(tmp_path: Path) -> None:
    from m3dt_agent.scores import summarize

    for spec in OWN:
        tasks.register(spec)
    rows = evaluate("random", [SWING, POINT, tasks.get("cheetah-vel-3")], EvalConfig(episodes=2, workers=0), progress=False)
    tasks.registry._own.clear()
    figure = tmp_path / "scores.png"
    save_score_figure([summarize(rows)], figure)
    assert figure.stat().st_size > 10_000
    assert tasks.by_group(row.task for row in rows) == {"cheetah-vel": ["cheetah-vel-3"], "others": ["own-swing", "own-point"]}


def test_datasets_of_own_tasks_are_pushed_and_pulled(
    lfs_hub: Hub, tmp_path: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tasks.register(POINT)
    collect([POINT], tmp_path / "data", CollectConfig(levels={"random": 1.0}, episodes=3), workers=0)
    push_datasets(tmp_path / "data", "alice/points", token="hf_alice")
    card = lfs_hub.read("datasets", "alice/points", "README.md").decode()
    assert all(text in card for text in ("[own-point]\n", "| lines | 1 | 1 | 3 | 60 |", "To pull their datasets and to train"))
    pull_datasets("alice/points", tmp_path / "pulled", token="hf_alice")
    one, other = (read_episodes(tmp_path / root / "m3dt/own-point/random-v0") for root in ("data", "pulled"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
    tasks.registry._own.clear()
    with pytest.raises(M3DTError, match="own-point"):
        pull_datasets("alice/points", tmp_path / "elsewhere", token="hf_alice")
    left_out = "datasets of own-point are left out: no such task is registered here"
    with pytest.raises(DatasetError, match=left_out):
        push_datasets(tmp_path / "data", "alice/none", token="hf_alice")
    random_datasets(tmp_path / "data", ["cheetah-vel-3"], episodes=3)
    push_datasets(tmp_path / "data", "alice/one", token="hf_alice")
    assert left_out in caplog.text
    code, out, err = run("data", "validate", "--root", tmp_path / "data")
    assert (code, "cheetah-vel-3" in out, left_out in err) == (0, True, True)
