"""Tasks that an agent learns from a few demonstrations: it acts as if they had been in its bank, and a bank keeps them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acting_banks import CONFIG, NAMES
from contracts import observations, play_alone, random_bank, random_datasets
from own_tasks import CHEETAH

from m3dt_agent import tasks
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.episodes import Episode, read_episodes, write_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.envs.make import make_env
from m3dt_agent.errors import BankError, ConfigError, DatasetError, StageError, UnknownTaskError
from m3dt_agent.tasks import TaskSpec
from m3dt_agent.training.stage_inputs import require_trained_tasks

NEW = dataclasses.replace(tasks.get("cheetah-vel-3"), name="own-goal", domain="goals", env="own/Goal-v0", max_episode_steps=15)


def episodes(task: TaskSpec = NEW, count: int = 3) -> list[Episode]:
    rng, ends = np.random.default_rng(count), np.arange(8) == 7
    return [
        Episode(
            observations=rng.normal(size=(9, task.obs_dim)).astype(np.float32),
            actions=rng.uniform(-1, 1, (8, task.act_dim)).astype(np.float32),
            rewards=rng.normal(size=8).astype(np.float32),
            terminations=np.zeros(8, bool),
            truncations=ends,
        )
        for _ in range(count)
    ]


def actions(agent: M3DTAgent, task: TaskSpec = NEW) -> Any:
    return play_alone(agent, task, observations(task, 4, 1), np.ones(4))


def test_a_task_is_learned_as_if_the_bank_had_been_made_with_it(data: TaskDatasets, agent: M3DTAgent, tmp_path: Path) -> None:
    """A bank of all five tasks has the same weights, because `random_bank` draws them alike."""
    shown = episodes()
    write_dataset(tmp_path / "data", NEW, "mine", shown, metadata={})
    whole = random_bank(
        tmp_path / "whole",
        TaskDatasets((*data.tasks, NEW), (*data.packed, *TaskDatasets.open(tmp_path / "data", [NEW]).packed)),
        CONFIG,
    )
    before = {task.name: actions(agent, task) for task in agent.tasks}
    agent.learn_task(NEW, shown)
    assert agent.tasks == (*data.tasks, NEW)
    np.testing.assert_array_equal(actions(agent), actions(M3DTAgent.load(whole.path)))
    for task in data.tasks:
        np.testing.assert_array_equal(actions(agent, task), before[task.name])


def test_what_was_learned_is_kept_in_a_bank(agent: M3DTAgent, bank: ExpertBank, tmp_path: Path) -> None:
    agent.learn_task(NEW, episodes())
    learned = actions(agent)
    agent.save(tmp_path / "saved")
    write_dataset(tmp_path / "data", NEW, "mine", episodes(), metadata={})
    before = {path: path.read_bytes() for path in bank.path.rglob("*") if path.is_file()}
    kept = bank.with_tasks(tmp_path / "kept", TaskDatasets.open(tmp_path / "data", [NEW], few=True))
    for path in ("saved", "kept"):
        again = M3DTAgent.load(tmp_path / path)
        assert (again.content_hash, again.tasks) == (agent.content_hash, agent.tasks)
        np.testing.assert_array_equal(actions(again), learned)
    assert agent.content_hash != bank.content_hash
    document = json.loads((kept.path / "bank.json").read_text())
    assert (document["format_version"], document["shown"], list(document["specs"])) == (4, ["own-goal"], ["own-goal"])
    weights = [name for name in bank.manifest.files if name not in ("statistics.safetensors", "prompts.safetensors")]
    assert all(kept.manifest.files[name] == bank.manifest.files[name] for name in weights)
    assert {path: path.read_bytes() for path in bank.path.rglob("*") if path.is_file()} == before


def test_a_name_of_the_160_needs_no_spec_and_several_tasks_make_one_bank(bank: ExpertBank, tmp_path: Path) -> None:
    """ant-dir-9 is longer than this model's episodes; a wider model takes it."""
    names = ["ant-dir-9", "walker-walk"]
    data = random_datasets(tmp_path / "data", names)
    with pytest.raises(
        ConfigError, match=r"'ant-dir-9' has observations and actions of 27 \+ 8 and 200 steps; the model takes 39"
    ):
        bank.with_tasks(tmp_path / "kept", data)
    assert not (tmp_path / "kept").exists()
    longer = random_bank(
        tmp_path / "longer", random_datasets(tmp_path / "own", NAMES), dataclasses.replace(CONFIG, max_timesteps=1000)
    )
    longer.commit({}, groups=dict(zip(NAMES, (0, 1, 2, 0), strict=True)))
    kept = longer.with_tasks(tmp_path / "kept", data)
    assert kept.manifest.shown == tuple(names)
    assert kept.groups == longer.groups
    agent = M3DTAgent.load(longer.path)
    for name in names:
        agent.learn_task(name, list(read_episodes(tmp_path / f"data/m3dt/{name}/random-v0")))
    assert agent.content_hash == kept.content_hash
    part = kept.for_tasks(tmp_path / "part", ["ant-dir-9", "reach"])
    assert (part.manifest.shown, part.groups) == (("ant-dir-9",), {"reach": 0})
    with pytest.raises(ConfigError, match="the bank has 'ant-dir-9' already"):
        kept.with_tasks(tmp_path / "again", data.subset(["ant-dir-9"]))
    with pytest.raises(BankError, match="not an empty folder"):
        longer.with_tasks(tmp_path / "kept", data)
    with pytest.raises(StageError, match="was only shown ant-dir-9, walker-walk"):
        require_trained_tasks(kept)


def test_a_bank_that_has_grown_learns_too(bank: ExpertBank, tmp_path: Path) -> None:
    """The growth keeps its own files; the learned task acts with the bank's own model."""
    later = dataclasses.replace(NEW, name="own-later")
    write_dataset(tmp_path / "data", later, "mine", episodes(later), metadata={})
    grown = bank.grown(tmp_path / "grown", TaskDatasets.open(tmp_path / "data", [later]))
    agent, before = M3DTAgent.load(grown.path), M3DTAgent.load(bank.path)
    for one in (agent, before):
        one.learn_task(NEW, episodes())
    np.testing.assert_array_equal(actions(agent), actions(before))
    agent.save(tmp_path / "saved")
    saved = ExpertBank.open(tmp_path / "saved")
    assert (saved.content_hash, saved.growths, saved.manifest.shown) == (agent.content_hash, grown.growths, (NEW.name,))
    assert saved.without_growth(tmp_path / "less").content_hash == before.content_hash
    with pytest.raises(ConfigError, match="was trained on 'own-later'"):
        agent.learn_task(later, episodes(later))


def test_a_task_that_is_learned_again_has_the_new_prompt(agent: M3DTAgent, bank: ExpertBank) -> None:
    agent.learn_task(NEW, episodes(count=1))
    first, beside = agent.content_hash, agent.copy()
    agent.learn_task(NEW, episodes(count=2))
    assert agent.tasks[-1] is NEW
    assert len(agent.tasks) == len(NAMES) + 1
    assert beside.content_hash == first != agent.content_hash
    np.testing.assert_array_equal(agent.prompts[NEW.name][0].actions, _best(episodes(count=2)).actions[-CONFIG.prompt_length :])
    assert NEW.name not in bank.prompts


def _best(found: list[Episode]) -> Episode:
    return max(found, key=lambda episode: episode.episode_return)


def test_experts_act_in_a_learned_task_as_they_are_named(agent: M3DTAgent, backbone_bank: ExpertBank) -> None:
    agent.learn_task(NEW, episodes())
    found = {}
    for experts in ("mixture", "none", 1):
        agent.experts = experts
        found[experts] = actions(agent)
    assert not np.array_equal(found["mixture"], found["none"])
    assert not np.array_equal(found["mixture"], found[1])
    backbone = M3DTAgent.load(backbone_bank.path)
    backbone.learn_task(NEW, episodes())
    np.testing.assert_allclose(actions(backbone), found["none"], atol=1e-6)


def test_what_cannot_be_learned_is_named_and_changes_nothing(data: TaskDatasets, agent: M3DTAgent) -> None:
    other = dataclasses.replace(NEW, return_scale=7.0)
    same_name = TaskDatasets((NEW,), (dataclasses.replace(data.packed[3], task=NEW),), few=True)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        ("reach", episodes(), ConfigError, r"was trained on 'reach'; reset\('reach'\) acts in it"),
        ("mt10", episodes(), ConfigError, "takes one task; 'mt10' means 10"),
        ("walker-wark", episodes(), UnknownTaskError, "did you mean walker-walk"),
        ("walker-walk", data, UnknownTaskError, "unknown task of these datasets 'walker-walk'"),
        (other, same_name, ConfigError, "hold another task of the name 'own-goal'"),
        (NEW, [], DatasetError, "no demonstrations"),
        (NEW, episodes(tasks.get("reach")), DatasetError, r"demonstration 0: observations is \(9, 39\)"),
        (dataclasses.replace(NEW, obs_dim=40), [], DatasetError, "no demonstrations"),
        (
            wide := dataclasses.replace(NEW, obs_dim=40),
            episodes(wide),
            ConfigError,
            r"of 40 \+ 6 and 15 steps; the model takes 39",
        ),
        (long := dataclasses.replace(NEW, max_episode_steps=16), episodes(long), ConfigError, "16 steps; the model takes"),
    ]
    for task, shown, error, message in cases:
        with pytest.raises(error, match=message):
            agent.learn_task(task, shown)
    assert (agent.tasks, set(agent.prompts)) == (data.tasks, set(NAMES))
    with pytest.raises(StageError, match="an untrained agent learns no task"):
        M3DTAgent(CONFIG, NAMES).learn_task(NEW, episodes())


def test_a_bank_is_neither_pushed_nor_trained_without_the_tasks_that_the_agent_has_learned(
    data: TaskDatasets, agent: M3DTAgent, tmp_path: Path
) -> None:
    agent.learn_task(NEW, episodes())
    with pytest.raises(StageError, match=r"cannot push: bank .* does not have own-goal, which the agent has learned; save"):
        agent.push_to_hub(tmp_path / "pushed")
    with pytest.raises(StageError, match=r"cannot train: bank .* does not have own-goal"):
        agent.fit_stage("router", data, bank=tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_an_agent_around_a_model_learns_too(data: TaskDatasets, bank: ExpertBank) -> None:
    agent = M3DTAgent.from_model(bank.model(), data.tasks, bank.statistics, bank.prompts, experts="mixture")
    agent.learn_task(NEW, episodes())
    reference = M3DTAgent.load(bank.path)
    reference.learn_task(NEW, episodes())
    with torch.inference_mode():
        np.testing.assert_array_equal(actions(agent), actions(reference))
    assert agent.content_hash == ""


@pytest.mark.slow
def test_a_new_goal_of_a_known_family_is_reached(own_registry: None) -> None:
    """The bank of the package, three demonstrations of a goal between two of its 40; 99 over 20 episodes."""
    from m3dt_agent.evaluation import evaluate

    tasks.register(CHEETAH)
    expert = behavior_policy(dataclasses.replace(tasks.get("cheetah-vel-20"), goal_velocity=1.61), "expert")
    agent = M3DTAgent.load("builtin:mt160")
    agent.learn_task(CHEETAH, (demonstration(CHEETAH, expert, seed) for seed in range(3)))
    rows = evaluate(agent, [CHEETAH], EvalConfig(episodes=2, workers=2), progress=False)
    assert min(row.normalized_score for row in rows) > 90


def demonstration(task: TaskSpec, act: Any, seed: int) -> Episode:
    """One episode of a policy."""
    env = make_env(task)
    steps, seen, over = [], [env.reset(seed=seed)[0]], False
    while not over:
        action = np.clip(act(seen[-1]), -1, 1)
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(obs)
        steps.append((action, reward, terminated, truncated))
        over = terminated or truncated
    env.close()
    columns: list[Any] = [np.array(column) for column in zip(*steps, strict=True)]
    return Episode(np.array(seen), *columns)
