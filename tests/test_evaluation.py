"""Evaluation in the real simulators: quotas, seeds, slots, workers, stopping at success, and the action error."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from contracts import random_bank, random_datasets

import m3dt_agent.envs
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.prompts import Prompt, prompt_window
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.envs.wrappers import StopOnSuccess
from m3dt_agent.errors import ConfigError, InvalidValueError, UnknownTaskError
from m3dt_agent.evaluation import action_error, evaluate, plan, read_rows, summarize, write_rows
from m3dt_agent.tasks import TASKS, TaskSpec, get, task_set

m3dt_agent.envs.register()

NAMES = ("reach", "cheetah-vel-25", "ant-dir-3")
CONFIG = ModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("datasets"), NAMES, episodes=5, length=15)


@pytest.fixture
def agent(tmp_path: Path, data: TaskDatasets) -> M3DTAgent:
    return M3DTAgent.from_pretrained(random_bank(tmp_path / "bank", data, CONFIG).path)


@pytest.mark.parametrize("slots", [1, 3, 16, 200])
@pytest.mark.parametrize("episodes", [1, 4, 10])
def test_every_episode_is_planned_once_in_few_full_waves(slots: int, episodes: int) -> None:
    tasks = [*task_set("mt10"), get("ant-dir-1"), get("cheetah-vel-2")]
    config = EvalConfig(episodes=episodes, slots=slots, seed=7)
    waves = plan(tasks, config)
    jobs = collections.Counter((slot.task.name, seed) for wave in waves for slot in wave for seed in slot.seeds)
    assert jobs == dict.fromkeys([(task.name, seed) for task in tasks for seed in range(7, 7 + episodes)], 1)
    assert len(waves) == -(-len(tasks) // slots)
    for wave in waves:
        assert len(wave) <= slots
        assert all(slot.seeds for slot in wave)
        assert len(wave) == slots or all(len(slot.seeds) == 1 for slot in wave) or wave is waves[-1]


def rollout(task: TaskSpec, seed: int, level: str, stop: bool = False) -> tuple[float, int, bool]:
    """One episode of a behavior policy, written out: return, length, success."""
    env: Any = gym.make(task.env_id)
    env = StopOnSuccess(env) if stop else env
    policy = behavior_policy(task, level)
    policy.reset(seed)
    obs, info = env.reset(seed=seed)
    total, length, done = 0.0, 0, False
    while not done:
        obs, reward, terminated, truncated, info = env.step(policy(obs))
        total, length, done = total + reward, length + 1, terminated or truncated
    env.close()
    return total, length, bool(info.get("success", False))


def test_rows_are_the_episodes_written_out() -> None:
    config = EvalConfig(episodes=3, slots=4, workers=0, stop_on_success=True, seed=5)
    for level in ("expert", "random", "zero"):
        rows = evaluate(level, NAMES, config)
        assert [(row.task, row.seed) for row in rows] == [(name, seed) for name in NAMES for seed in (5, 6, 7)]
        for row in rows:
            task = get(row.task)
            episode_return, length, success = rollout(task, row.seed, level, stop=True)
            assert row.episode_return == pytest.approx(episode_return, rel=1e-12, abs=1e-9)
            assert (row.length, row.policy, row.bank_hash, row.stop_on_success) == (length, level, "", True)
            assert row.success == (success if task.domain == "metaworld" else None)
            assert row.reward_version == ("v2" if task.domain == "metaworld" else None)
            assert row.normalized_score == task.normalized_score(episode_return, row.success)
            assert set(row.versions) == {"m3dt-agent", "torch", "gymnasium", "mujoco", "metaworld", "dm_control"}
    assert summarize(evaluate("expert", NAMES[:1], config)).success_rate == 1.0


def test_without_stopping_an_episode_has_its_full_length() -> None:
    rows = evaluate("expert", ["reach", "cheetah-vel-25"], EvalConfig(episodes=1, workers=0))
    assert [(row.length, row.success) for row in rows] == [(500, True), (200, None)]


@pytest.mark.parametrize("level", ["random", "expert+0.5"])
def test_behavior_rows_do_not_depend_on_slots_and_workers(level: str) -> None:
    tasks = ["cheetah-vel-25", "ant-dir-3"]
    results = [
        evaluate(level, tasks, EvalConfig(episodes=5, slots=slots, workers=workers))
        for slots, workers in ((1, 0), (3, 0), (32, 2))
    ]
    assert results[0] == results[1] == results[2]


SLOTS_AND_WORKERS = [(2, 0), (5, 0), (16, 2)]


def test_agent_rows_do_not_depend_on_slots_and_workers(tmp_path: Path, data: TaskDatasets) -> None:
    """Up to float32 rounding, which differs with the number of rows in a batch; a task without contacts does not amplify it."""
    agent = M3DTAgent.from_pretrained(random_bank(tmp_path / "gentle", data, CONFIG, gain=1.0).path)
    results = []
    for slots, workers in SLOTS_AND_WORKERS:
        rows = evaluate(agent, ["cheetah-vel-25"], EvalConfig(episodes=4, slots=slots, workers=workers))
        results.append([row.episode_return for row in rows])
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-4)


def test_agent_rows_in_float64_are_the_same_to_the_last_bit(agent: M3DTAgent) -> None:
    """Even where contacts amplify rounding over 200 steps: ant-dir returns of this agent differ by half in float32."""
    agent.model.double()
    configs = [EvalConfig(episodes=3, slots=slots, workers=workers) for slots, workers in SLOTS_AND_WORKERS]
    results = [evaluate(agent, ["cheetah-vel-25", "ant-dir-3"], config) for config in configs]
    assert results[0] == results[1] == results[2]
    assert {row.bank_hash for row in results[0]} == {agent.content_hash}
    assert {row.policy for row in results[0]} == {"m3dt-mixture"}


def test_the_agent_sees_rewards_unless_told_otherwise(agent: M3DTAgent) -> None:
    agent.model.double()  # so that one slot alone gives the same to the last bit
    returns = {
        mode: evaluate(agent, ["cheetah-vel-25"], EvalConfig(episodes=1, workers=0, rtg_mode=mode))[0].episode_return  # type: ignore[arg-type]
        for mode in ("rewards", "constant")
    }
    env = gym.make("M3DT/cheetah-vel-25-v0")
    for mode, expected in returns.items():
        obs, _ = env.reset(seed=EvalConfig().seed)
        agent.reset(task="cheetah-vel-25", rtg_mode=mode)  # type: ignore[arg-type]
        total, reward, done = 0.0, None, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs, reward=reward))
            total, done = total + float(reward), terminated or truncated
        assert total == expected
    assert returns["rewards"] != returns["constant"]


class Recorder:
    """A policy that keeps what it was called with."""

    name, bank_hash = "recorder", "abc"

    def __init__(self, action: float = 0.0) -> None:
        self.action, self.calls, self.schedule = action, [], []  # type: ignore[var-annotated]

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self.schedule.append([(task.name, list(queue)) for task, queue in zip(tasks, seeds, strict=True)])

    def act(self, obs: Any, *, reward: Any, reset_mask: Any, active: Any) -> Any:
        self.calls.append((obs.copy(), None if reward is None else reward.copy(), reset_mask.copy(), active.copy()))
        return np.full((len(obs), 8), self.action, np.float32)


def test_what_a_policy_is_told() -> None:
    policy = Recorder()
    rows = evaluate(policy, ["cheetah-vel-3", "ant-dir-0"], EvalConfig(episodes=3, slots=3, workers=0, seed=1))
    assert policy.schedule == [[("cheetah-vel-3", [1, 3]), ("cheetah-vel-3", [2]), ("ant-dir-0", [1, 2, 3])]]
    assert {row.policy for row in rows} == {"recorder"}
    obs, rewards, starts, active = (list(column) for column in zip(*policy.calls, strict=True))
    assert rewards[0] is None
    assert obs[0].shape == (3, 39)
    assert np.sum(starts, axis=0).tolist() == [2, 1, 3]
    lengths = {(row.task, row.seed): row.length for row in rows}
    expected = [lengths["cheetah-vel-3", 1] + lengths["cheetah-vel-3", 3], lengths["cheetah-vel-3", 2]]
    assert np.sum(active, axis=0).tolist() == [*expected, sum(lengths["ant-dir-0", seed] for seed in (1, 2, 3))]
    first = gym.make("M3DT/ant-dir-0-v0").reset(seed=1)[0]
    np.testing.assert_array_equal(obs[0][2, :27], first)


def test_what_evaluate_refuses(agent: M3DTAgent) -> None:
    config = EvalConfig(episodes=1, workers=0)
    with pytest.raises(UnknownTaskError, match="did you mean"):
        evaluate("random", ["walker-rum"], config)
    with pytest.raises(ConfigError, match="at least one task"):
        evaluate("random", [], config)
    with pytest.raises(ConfigError, match="has no behavior policy 'novice'"):
        evaluate("novice", ["reach"], config)
    with pytest.raises(UnknownTaskError, match="task of this agent"):
        evaluate(agent, ["pick-place"], config)
    with pytest.raises(InvalidValueError, match=r"slot 0 \(cheetah-vel-3\)"):
        evaluate(Recorder(float("nan")), ["cheetah-vel-3"], config)


def test_rows_of_an_evaluation_survive_the_disk(tmp_path: Path) -> None:
    rows = evaluate("random", ["cheetah-vel-25", "pendulum-swingup"], EvalConfig(episodes=2, workers=0))
    assert read_rows(write_rows(tmp_path / "rows.jsonl", rows)) == rows
    assert len({row.seed for row in rows}) == 2
    assert all(task in {spec.name for spec in TASKS} for task in summarize(rows).tasks)


def test_action_error_is_the_mean_square_over_real_actions(agent: M3DTAgent, data: TaskDatasets) -> None:
    """Few short episodes, each window drawn many times: close to the error over all windows."""
    errors = action_error(agent, data, n_windows=300, seed=1)
    assert list(errors) == list(NAMES)
    assert errors == action_error(agent, data, n_windows=300, seed=1)
    assert errors != action_error(agent, data, n_windows=300, seed=2)
    assert errors != action_error(agent, data, n_windows=300, seed=1, experts="none")
    expected = {task.name: _error_over_all_windows(agent, data, i) for i, task in enumerate(data.tasks)}
    assert errors == pytest.approx(expected, rel=0.1)


def _error_over_all_windows(agent: M3DTAgent, data: TaskDatasets, i: int) -> float:
    """The mean over every window of every training episode, each predicted by itself."""
    task, packed = data.tasks[i], data.packed[i]
    statistics, prompts = [agent.statistics[task.name]], [agent.prompts[task.name][0]]
    config = dataclasses.replace(CONFIG, prompt_length=CONFIG.context_length)  # a window is made like a prompt
    total, count = 0.0, 0
    for episode in data.train_episodes(i):
        rows = np.array(packed.steps[packed.offsets[episode] : packed.offsets[episode + 1]])
        for first in range(len(rows)):
            window = rows[first : first + CONFIG.context_length]
            actions, times = window[:, task.obs_dim : -1], np.arange(first, first + len(window))
            steps = Prompt(window[:, : task.obs_dim], actions, window[:, -1], times)
            with torch.no_grad():
                predicted = agent.model(
                    prompt_window([steps], statistics, config), prompt_window(prompts, statistics, CONFIG), agent.experts
                )
            total += float(np.square(predicted[0, -len(window) :, : task.act_dim].numpy() - actions).sum())
            count += actions.size
    return total / count
