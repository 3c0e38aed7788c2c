"""Evaluation in the real simulators: quotas, seeds, slots, workers, threads, and stopping at success."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from contracts import random_bank

import m3dt_agent.envs
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.envs.locomotion import CheetahVelEnv
from m3dt_agent.envs.wrappers import StopOnSuccess
from m3dt_agent.errors import ConfigError, InvalidValueError, M3DTError, ShapeError, UnknownTaskError
from m3dt_agent.evaluation import AgentPolicy, evaluate, read_rows, summarize, write_rows
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.tasks import TASKS, TaskSpec, get

m3dt_agent.envs.register()

NAMES = ("reach", "cheetah-vel-25", "ant-dir-3")
CONFIG = ModelConfig.preset("tiny")


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
    config = EvalConfig(episodes=2, slots=4, workers=0, stop_on_success=True, seed=5)
    for level in ("expert", "zero"):
        rows = evaluate(level, NAMES, config)
        assert [(row.task, row.seed) for row in rows] == [(name, seed) for name in NAMES for seed in (5, 6)]
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


@pytest.mark.parametrize("level", ["random", pytest.param("expert+0.5", marks=pytest.mark.slow)])
def test_behavior_rows_do_not_depend_on_slots_and_workers(level: str) -> None:
    tasks = ["cheetah-vel-25", "ant-dir-3"]  # one slot runs both, one after the other
    results = [
        evaluate(level, tasks, EvalConfig(episodes=2, slots=slots, workers=workers, overlap=overlap))
        for slots, workers, overlap in ((1, 0, False), (4, 1, True), (5, 2, False))
    ]
    assert results == results[:1] * 3


SLOTS_AND_WORKERS = [(2, 0), (5, 0), (16, 2)]


def test_agent_rows_do_not_depend_on_slots_and_workers(tmp_path: Path, data: TaskDatasets) -> None:
    """Up to float32 rounding, which differs with the number of rows in a batch; a task without contacts does not amplify it."""
    agent = M3DTAgent.from_pretrained(random_bank(tmp_path / "gentle", data, CONFIG, gain=1.0).path)
    results = []
    for slots, workers in SLOTS_AND_WORKERS:
        rows = evaluate(agent, ["cheetah-vel-25"], EvalConfig(episodes=4, slots=slots, workers=workers))
        results.append([row.episode_return for row in rows])
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-4)


@pytest.mark.slow
def test_agent_rows_in_float64_are_the_same_to_the_last_bit(agent: M3DTAgent) -> None:
    """Even where contacts amplify rounding over 200 steps: ant-dir returns of this agent differ by half in float32."""
    agent.model.double()
    configs = [
        EvalConfig(episodes=3, slots=slots, workers=workers, overlap=workers == 2) for slots, workers in SLOTS_AND_WORKERS
    ]
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


@pytest.mark.parametrize("overlap", [pytest.param(False, marks=pytest.mark.slow), True])
def test_deterministic_rows_are_the_same_for_any_number_of_workers_and_threads(agent: M3DTAgent, overlap: bool) -> None:
    """In float32, on a task whose contacts amplify a last bit to half of a return."""
    config = EvalConfig(episodes=1, slots=2, overlap=overlap, deterministic=True)
    results = []
    for workers, threads in ((0, 1), (2, 2)):
        with cpu_threads(threads):
            results.append(evaluate(agent, ["ant-dir-3", "cheetah-vel-25"], dataclasses.replace(config, workers=workers)))
            assert torch.get_num_threads() == threads
    assert results == results[:1] * 2


class Recorder:
    """A policy that keeps what it was called with."""

    name, bank_hash = "recorder", "abc"

    def __init__(self, action: float = 0.0) -> None:
        self.action, self.calls, self.schedule = action, [], []  # type: ignore[var-annotated]
        self.threads: set[int] = set()

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self.schedule.append([(task.name, list(queue)) for task, queue in zip(tasks, seeds, strict=True)])

    def act(self, obs: Any, *, reward: Any, reset_mask: Any, active: Any) -> Any:
        self.threads.add(torch.get_num_threads())
        self.calls.append((obs.copy(), reward.copy(), reset_mask.copy(), active.copy()))
        return np.full((len(obs), 8), self.action, np.float32)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_policy_is_told(overlap: bool) -> None:
    policy = Recorder()
    config = EvalConfig(episodes=3, slots=4, workers=0, seed=1, overlap=overlap)
    rows = evaluate(policy, ["cheetah-vel-3", "ant-dir-0"], config)
    episodes = [(name, seed) for name in ("cheetah-vel-3", "ant-dir-0") for seed in (1, 2, 3)]
    assert policy.schedule == [[(name, [seed]) for name, seed in episodes]]
    assert [(row.task, row.seed, row.policy) for row in rows] == [(*episode, "recorder") for episode in episodes]
    obs, rewards, starts, active = (np.array(column) for column in zip(*policy.calls, strict=True))  # (calls, 6, …)
    assert starts.sum(axis=0).tolist() == [1] * 6
    assert active.sum(axis=0).tolist() == [row.length for row in rows]
    assert active.sum(axis=1).max() == (2 if overlap else 4)
    for i, (name, seed) in enumerate(episodes):
        oracle = played(name, seed, policy.action)
        for k, (observation, reward) in zip(np.flatnonzero(active[:, i]), oracle, strict=True):
            np.testing.assert_array_equal(obs[k, i, : len(observation)], observation)
            assert not obs[k, i, len(observation) :].any()
            assert starts[k, i] or rewards[k, i] == reward


def played(name: str, seed: int, action: float) -> list[tuple[Any, float]]:
    """What a policy that always takes this action is to see in an episode: observations, and the rewards before them."""
    env = gym.make(get(name).env_id)
    obs, reward, done = env.reset(seed=seed)[0], 0.0, False
    seen = []
    while not done:
        seen.append((obs, reward))
        obs, reward, terminated, truncated, _ = env.step(np.full(env.action_space.shape, action, np.float32))  # type: ignore[arg-type, assignment]
        done = terminated or truncated
    env.close()
    return seen


def test_threads_of_torch_are_fixed_for_deterministic_rows_only_and_given_back() -> None:
    config = EvalConfig(episodes=1, workers=0)
    with cpu_threads(1):
        for deterministic, threads in ((False, {1}), (True, {2})):
            policy = Recorder()
            evaluate(policy, ["cheetah-vel-3"], dataclasses.replace(config, deterministic=deterministic))
            assert policy.threads == threads
        with pytest.raises(InvalidValueError):
            evaluate(Recorder(float("nan")), ["cheetah-vel-3"], dataclasses.replace(config, deterministic=True))
        assert torch.get_num_threads() == 1


def test_all_threads_are_tried_again_in_every_part(agent: M3DTAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[list[int]] = []
    reset, act = AgentPolicy.reset, AgentPolicy.act

    def noting_reset(policy: AgentPolicy, *args: Any) -> None:
        used.append([])
        reset(policy, *args)

    def slow_with_two(policy: AgentPolicy, *args: Any, **told: Any) -> Any:
        used[-1].append(torch.get_num_threads())
        time.sleep(0.02 if torch.get_num_threads() == 2 else 0.0)  # so that the first part ends with one thread
        return act(policy, *args, **told)

    monkeypatch.setattr(AgentPolicy, "reset", noting_reset)
    monkeypatch.setattr(AgentPolicy, "act", slow_with_two)
    monkeypatch.setattr("m3dt_agent.evaluation.rollout._EPISODES_AT_ONCE", 1)
    monkeypatch.setattr("m3dt_agent.evaluation.threads.TRY_AGAIN_AFTER", 60)
    with cpu_threads(2):
        evaluate(agent, ["cheetah-vel-25"], EvalConfig(episodes=2, workers=0))
    assert [set(part) for part in used] == [{1, 2}] * 2
    assert used[0][-1] == 1


def test_many_episodes_are_played_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvalConfig(episodes=5, slots=3, workers=0)
    whole = evaluate("random", ["cheetah-vel-3", "ant-dir-0"], config)
    monkeypatch.setattr("m3dt_agent.evaluation.rollout._EPISODES_AT_ONCE", 4)
    assert evaluate("random", ["cheetah-vel-3", "ant-dir-0"], config) == whole
    policy = Recorder()
    evaluate(policy, ["cheetah-vel-3", "ant-dir-0"], config)
    assert [len(part) for part in policy.schedule] == [4, 4, 2]


def test_an_observation_that_is_not_finite_is_named_by_task_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(env: CheetahVelEnv) -> Any:
        return np.full(20, np.nan if env._steps_left == 190 else 0.0, np.float32)

    monkeypatch.setattr(CheetahVelEnv, "_observe", diverges)
    with pytest.raises(InvalidValueError, match=r"'cheetah-vel-3', seed 7: an observation is not finite after 11 steps"):
        evaluate("zero", ["cheetah-vel-3"], EvalConfig(episodes=1, seed=7, workers=0))


def test_a_worker_that_dies_ends_the_evaluation_and_the_others() -> None:
    class Killer(Recorder):
        def act(self, obs: Any, **told: Any) -> Any:
            if len(self.calls) == 5:
                self.children = environment_workers()
                os.kill(self.children[0], signal.SIGKILL)
            return super().act(obs, **told)

    policy = Killer()
    with pytest.raises(M3DTError, match=r"environment worker \d .*cheetah-vel-3.* died: killed by signal 9"):
        evaluate(policy, ["cheetah-vel-3"], EvalConfig(episodes=4, slots=4, workers=2, overlap=True))
    assert not set(policy.children) & set(environment_workers())


def environment_workers() -> list[int]:
    """Environment workers of this process."""
    return [process.pid for process in psutil.Process().children() if "m3dt_agent.envs.worker" in process.cmdline()]


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


def test_values_of_a_wrong_type_are_named(tmp_path: Path) -> None:
    config = EvalConfig(episodes=1, workers=0)

    def policy(act: Any = None, **attributes: Any) -> Any:
        made = type("Made", (Recorder,), attributes)()
        made.act = (lambda obs, **_: act) if act is not None else made.act
        return made

    for arguments, error, message in (
        (
            (5, NAMES, config),
            ConfigError,
            "a behavior policy's level, or have `reset` and `act`; got 5",
        ),
        ((None, NAMES, config), ConfigError, "policy must be an agent"),
        (("zero", NAMES, {"episodes": 1}), ConfigError, "config must be an EvalConfig or None; got {'episodes': 1}"),
        (("zero", 5, config), ConfigError, "tasks must be names"),
        (("zero", ["cheetah-vel-3", 7], config), UnknownTaskError, "unknown task 7"),
        ((policy(name=""), NAMES, config), ConfigError, "a policy's name must be a string of printable characters; got ''"),
        ((policy(bank_hash=None), NAMES, config), ConfigError, "a policy's bank_hash must be a string"),
        ((policy(act="left"), ["cheetah-vel-3"], config), ShapeError, "recorder: act must return numbers of shape (1, 8)"),
        ((policy(act=np.zeros((1, 6))), ["cheetah-vel-3"], config), ShapeError, "actions of shape (1, 8); got (1, 6)"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            evaluate(*arguments)
    with pytest.raises(ConfigError, match="rows must be a path or None; got 5"):
        evaluate("zero", NAMES, config, rows=5)  # type: ignore[arg-type]


def test_rows_of_an_evaluation_survive_the_disk(tmp_path: Path) -> None:
    rows = evaluate("random", ["cheetah-vel-25", "pendulum-swingup"], EvalConfig(episodes=2, workers=0))
    assert read_rows(write_rows(tmp_path / "rows.jsonl", rows)) == rows
    assert len({row.seed for row in rows}) == 2
    assert all(task in {spec.name for spec in TASKS} for task in summarize(rows).tasks)
