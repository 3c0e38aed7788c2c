"""Banks with tasks that are not among the 160: their specs, the format that carries them, and what a strange one may say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from own_tasks import POINT, SWING, WIDE

from m3dt_agent import BackboneConfig, DataConfig, EvalConfig, ExpertBank, M3DTAgent, ModelConfig, TaskDatasets, tasks
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.errors import BankError, ConfigError
from m3dt_agent.evaluation import evaluate
from m3dt_agent.scores.rows import read_rows, write_rows
from m3dt_agent.tasks import TaskSpec

MIXED = (SWING, tasks.get("cheetah-vel-3"), POINT, WIDE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    """A bank of three tasks of one's own and one of the 160, with a backbone of two steps."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.registry, "_own", {})
        for spec in (SWING, POINT, WIDE):
            tasks.register(spec)
        collect(MIXED, folder / "data", CollectConfig(levels={"random": 1.0}, episodes=4), workers=0)
        data = TaskDatasets.open(folder / "data", MIXED, config=DataConfig(n_prompts=1))
        agent = M3DTAgent(ModelConfig.preset("tiny").for_tasks(MIXED), MIXED)
        agent.fit_stage("backbone", data, bank=folder / "bank", config=BackboneConfig(steps=2, batch_size=4), progress=False)
    return ExpertBank.open(folder / "bank")


def trained_on(bank: ExpertBank) -> TaskDatasets:
    """The datasets of the fixture's bank."""
    return TaskDatasets.open(bank.path.parent / "data", MIXED, config=DataConfig(n_prompts=1))


def test_a_bank_carries_the_specs_of_its_own_tasks(trained: ExpertBank, own_registry: None, tmp_path: Path) -> None:
    assert trained.tasks == MIXED
    document = json.loads((trained.path / "bank.json").read_text())
    assert (document["format_version"], list(document["specs"])) == (3, [SWING.name, POINT.name, WIDE.name])
    copy = trained.copy_to(tmp_path / "copy", storage="bfloat16")
    assert (copy.tasks, copy.manifest.format_version) == (MIXED, 3)
    assert ExpertBank.open(copy.path).content_hash != trained.content_hash


def test_an_agent_acts_in_tasks_that_nobody_registered(trained: ExpertBank, own_registry: None) -> None:
    agent = M3DTAgent.load(trained.path)
    agent.reset("own-wide")
    assert agent.act([0.0] * 46).shape == (28,)
    with pytest.raises(ConfigError, match=r"'own-swing' is not registered here.*\n\[own-swing\]"):
        evaluate(agent, ["own-swing"], EvalConfig(episodes=1, workers=0), progress=False)


def test_rows_of_own_tasks_carry_their_score_and_are_read_anywhere(
    trained: ExpertBank, own_registry: None, tmp_path: Path
) -> None:
    for spec in (SWING, POINT, WIDE):
        tasks.register(spec)
    path = tmp_path / "rows.jsonl"
    rows = evaluate(M3DTAgent.load(trained.path), [*MIXED], EvalConfig(episodes=1, workers=2), rows=path, progress=False)
    assert [(row.task, row.score) for row in rows] == [(t.name, None if t in tasks.TASKS else t.score) for t in MIXED]
    code = f"from m3dt_agent.scores.rows import read_rows; print([row.normalized_score for row in read_rows({str(path)!r})])"
    elsewhere = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert sorted(elsewhere) == sorted(row.normalized_score for row in rows)
    assert read_rows(write_rows(tmp_path / "again.jsonl", rows)) == rows
    assert '"score"' not in path.read_text().splitlines()[0]  # the 160 come first, and their rows are as before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version 1 with what goes with 3"),
        ({"format_version": 5}, "format version 5"),
        ({"format_version": 4}, "format version 4 with what goes with 3"),
        ({"specs": {}}, "format version 3 with what goes with"),
        ({"spec": {"name": "reach"}, "as": "reach"}, "which is not the name of one of its tasks"),
        ({"spec": {"obs_dim": 1_000_000_000}}, "obs_dim must be an integer from 1"),
        ({"spec": {"obs_dim": 100}}, "the model takes 46"),
        ({"spec": {"name": "../x"}}, "name must be"),
        ({"spec": {"env": "os:system"}}, "env must be"),
        ({"spec": {"env": 3}}, "env must be a string"),
        ({"spec": {"colour": 3}}, "colour"),
        ({"as": "nobody"}, "not the name of one of its tasks"),
    ],
)
def test_a_strange_spec_is_refused(trained: ExpertBank, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    document = json.loads((trained.path / "bank.json").read_text())
    if "spec" in changes or "as" in changes:
        spec = document["specs"].pop(WIDE.name) | changes.get("spec", {})
        document["specs"][changes.get("as", WIDE.name)] = spec
    document |= {key: value for key, value in changes.items() if key in ("format_version", "specs")}
    with pytest.raises(BankError, match=message):
        Manifest.from_json(json.dumps(document), tmp_path / "bank.json")


def test_a_bank_that_cannot_be_made_leaves_nothing(trained: ExpertBank, tmp_path: Path) -> None:
    narrow = ModelConfig.preset("tiny")
    arguments = (trained.statistics, trained.prompts, trained.data_config)
    with pytest.raises(ConfigError, match="the model takes 39"):
        ExpertBank.create(tmp_path / "bank", narrow, MIXED, *arguments)
    assert not (tmp_path / "bank").exists()
    with pytest.raises(ConfigError, match=r"use config\.for_tasks"):
        M3DTAgent(narrow, MIXED)


def test_a_bank_and_data_of_another_spec_do_not_go_together(trained: ExpertBank, own_registry: None) -> None:
    other: TaskSpec = dataclasses.replace(SWING, return_scale=1.0)
    agent = M3DTAgent(trained.config, (other, *MIXED[1:]))
    with pytest.raises(ConfigError, match="their specs differ"):
        agent.fit_stage("backbone", trained_on(trained), bank=trained, config=BackboneConfig(steps=3))
