"""The mixed-task vector environment against single environments, and what happens to its processes when things go wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from m3dt_agent import tasks
from m3dt_agent.envs.vector import _STEP_COST, MixedTaskVectorEnv, share_out
from m3dt_agent.errors import ConfigError, InvalidValueError, M3DTError, ShapeError

pytest.importorskip("metaworld", reason="the simulators are not installed: pip install 'm3dt-agent[envs]'")

MIXED = tuple(tasks.get(name) for name in ("walker-run", "reach", "ant-dir-3", "cheetah-vel-25", "reach"))
LIGHT = tuple(tasks.get(name) for name in ("cheetah-vel-1", "ant-dir-0", "pendulum-spin"))


def _actions(n: int, slots: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (n, slots, 8)).astype(np.float32)


def _alone(task: tasks.TaskSpec, actions: NDArray[np.float32], seed: int) -> list[tuple[Any, ...]]:
    """One episode of one task: (padded observation, reward, terminated, truncated) from its reset on."""
    env = gym.make(task.env_id)
    observation, _ = env.reset(seed=seed)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False)]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action[: task.act_dim])
        steps.append((observation, reward, terminated, truncated))
        if terminated or truncated:
            break
    env.close()
    return [(np.pad(step[0], (0, 39 - task.obs_dim)), *step[1:]) for step in steps]


@pytest.fixture(scope="module")
def alone() -> list[list[tuple[Any, ...]]]:
    actions = _actions(205, len(MIXED))  # past the end of ant-dir and cheetah-vel
    return [_alone(task, actions[:, i], seed=40 + i) for i, task in enumerate(MIXED)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_slot_runs_its_own_task_and_then_stays(workers: int, alone: list[list[tuple[Any, ...]]]) -> None:
    actions, expected = _actions(205, len(MIXED)), alone
    env = MixedTaskVectorEnv(MIXED, workers=workers)
    observations, info = env.reset(seed=40)
    assert info["active"].all()
    assert not info["success"].any()
    assert observations.dtype == np.float32
    for slot in range(len(MIXED)):
        assert np.array_equal(observations[slot], expected[slot][0][0])
    for k, action in enumerate(actions, 1):
        observations, rewards, terminated, truncated, info = env.step(action)
        for slot, steps in enumerate(expected):
            observation, reward, *flags = steps[min(k, len(steps) - 1)]
            assert np.array_equal(observations[slot], observation)
            assert rewards[slot] == (reward if k < len(steps) else 0.0)
            assert [terminated[slot], truncated[slot]] == flags
            assert info["active"][slot] == (k < len(steps) and not any(flags))
    assert not info["active"][2]
    assert not info["active"][3]
    assert info["active"][[0, 1, 4]].all()
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_reset_masks(workers: int) -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=workers)
    options = {"reset_mask": np.array([True, False, True])}
    first, info = env.reset(seed=[5, None, 6], options=options)
    assert list(options) == ["reset_mask"], "the caller's dict was changed"
    assert info["active"].tolist() == [True, False, True]
    assert not first[1].any()
    moved, rewards, *_ = env.step(_actions(1, 3)[0])
    assert not np.array_equal(moved[0], first[0])
    assert not moved[1].any()
    assert rewards[1] == 0.0
    again, info = env.reset(seed=[5, 7, 8], options={"reset_mask": np.array([True, True, False])})
    assert info["active"].all()
    assert np.array_equal(again[0], first[0])
    assert np.array_equal(again[2], moved[2]), "a slot outside the mask was touched"
    everything, _ = env.reset(seed=5)
    assert np.array_equal(everything[0], first[0])
    env.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_unseeded_resets_continue_a_slots_own_generator(workers: int) -> None:
    env = MixedTaskVectorEnv(LIGHT[:1], workers=workers)
    runs = [[env.reset(seed=3)[0], env.reset()[0]] for _ in range(2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[0][1])
    env.close()


Command = tuple[str, Any]
COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("reset"), st.lists(st.booleans(), min_size=3, max_size=3).filter(any)),
        st.tuples(st.just("step"), st.sampled_from([1, 2, 90])),
    ),
    max_size=8,
)


class SingleEnvironments:
    """The oracle: single environments, driven one by one, with the last thing each said."""

    def __init__(self, task_specs: tuple[tasks.TaskSpec, ...]) -> None:
        self.envs = [gym.make(task.env_id) for task in task_specs]
        self.last: list[dict[str, Any]] = [{"active": False, "obs": [], "end": (False, False)} for _ in self.envs]

    def reset(self, slot: int, seed: int) -> None:
        self.last[slot] = {"active": True, "obs": self.envs[slot].reset(seed=seed)[0], "end": (False, False)}

    def step(self, slot: int, action: NDArray[np.float32]) -> float:
        if not self.last[slot]["active"]:
            return 0.0
        env = self.envs[slot]
        observation, reward, *end, _ = env.step(action[: env.action_space.shape[0]])
        self.last[slot] = {"active": not any(end), "obs": observation, "end": tuple(end)}
        return float(reward)


@pytest.fixture(scope="module")
def pair() -> Any:
    env, oracle = MixedTaskVectorEnv(LIGHT, workers=0), SingleEnvironments(LIGHT)
    yield env, oracle
    env.close()


@settings(max_examples=12, deadline=None)
@given(commands=COMMANDS, seed=st.integers(0, 1000))
def test_any_sequence_of_resets_and_steps(pair: Any, commands: list[Command], seed: int) -> None:
    env, oracle = pair
    rng = np.random.default_rng(seed)
    for name, argument in [("reset", [True] * 3), *commands]:
        rewards, expected = np.zeros(3), [0.0] * 3
        if name == "reset":
            seed += 1
            observations, info = env.reset(seed=seed, options={"reset_mask": np.array(argument)})
            for slot in np.flatnonzero(argument).tolist():
                oracle.reset(slot, seed + slot)
        for _ in range(argument if name == "step" else 0):
            action = rng.uniform(-1, 1, (3, 8)).astype(np.float32)
            observations, rewards, terminated, truncated, info = env.step(action)
            expected = [oracle.step(slot, action[slot]) for slot in range(3)]
            assert list(zip(terminated.tolist(), truncated.tolist(), strict=True)) == [last["end"] for last in oracle.last]
        assert rewards.tolist() == expected
        assert info["active"].tolist() == [last["active"] for last in oracle.last]
        for row, last in zip(observations, oracle.last, strict=True):
            assert np.array_equal(row[: len(last["obs"])], last["obs"])
            assert not row[len(last["obs"]) :].any()


@pytest.fixture(scope="module", params=[0, 2])
def light(request: pytest.FixtureRequest) -> Any:
    env = MixedTaskVectorEnv(LIGHT, workers=request.param)
    yield env
    env.close()


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_slots_sent_on_in_groups_do_what_they_do_together(light: MixedTaskVectorEnv, data: st.DataObject) -> None:
    """Groups in any order, waited for at any time; each slot's k-th step is that of an environment stepped alone."""
    order = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
    groups = data.draw(st.sampled_from([((0,), (1,), (2,)), ((0, 2), (1,), ()), ((2, 1), (0,), ())]))
    actions = _actions(31, 3)
    expected = [_alone(task, actions[:, i], seed=i) for i, task in enumerate(LIGHT)]
    masks = [np.isin(np.arange(3), group) for group in groups]
    env, steps = light, np.zeros(3, int)
    env.wait()  # a failed example may have left something under way
    env.reset_async(seed=0)
    env.wait()
    for number in order:
        mask = masks[number]
        observations, rewards, terminated, truncated, info = env.wait(mask)
        for slot in groups[number]:
            observation, reward, *ends = expected[slot][steps[slot]]
            assert np.array_equal(observations[slot], observation)
            assert [rewards[slot], terminated[slot], truncated[slot]] == [reward, *ends]
            assert info["active"][slot] == (not any(ends))
        env.step_async(np.stack([actions[steps[slot], slot] for slot in range(3)]), mask)
        steps = np.where(mask & info["active"], steps + 1, steps)
    env.wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reset_may_give_slots_another_task(workers: int) -> None:
    actions = _actions(20, 3)
    env = MixedTaskVectorEnv(LIGHT, workers=workers)
    observations, _ = env.reset(seed=0)
    following = [LIGHT[2], LIGHT[2], LIGHT[0]]
    options = {"tasks": following, "reset_mask": np.array([True, False, True])}
    env.reset(seed=[7, None, 9], options=options)
    assert env.tasks == (LIGHT[2], LIGHT[1], LIGHT[0])
    expected = [_alone(task, actions[:, i], seed) for i, (task, seed) in enumerate(zip(env.tasks, (7, 1, 9), strict=True))]
    assert np.array_equal(observations[1], expected[1][0][0])
    for k, action in enumerate(actions, 1):
        observations, rewards, *_ = env.step(action)
        for slot in range(3):
            assert np.array_equal(observations[slot], expected[slot][k][0]), "of the old task something is left"
            assert rewards[slot] == expected[slot][k][1]
    with pytest.raises(ShapeError, match="3; got 2"):
        env.reset(options={"tasks": following[:2]})
    env.close()


def test_what_is_busy_must_be_waited_for() -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=2)
    env.reset(seed=0)
    first = np.array([True, False, True])
    env.step_async(_actions(1, 3)[0], first)
    with pytest.raises(M3DTError, match=r"slots \[0, 2\] .* are busy"):
        env.step(_actions(1, 3)[0])
    with pytest.raises(M3DTError, match=r"slots \[2\] .* are busy"):
        env.reset_async(seed=0, options={"reset_mask": np.array([False, False, True])})
    env.step_async(_actions(1, 3)[0], ~first)
    env.wait(first)
    env.wait()
    assert env.step(_actions(1, 3)[0])[4]["active"].all()
    env.close()


def test_returned_arrays_belong_to_the_caller() -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=0)
    observations, info = env.reset(seed=0)
    kept = observations.copy()
    env.step(_actions(1, 3)[0])
    assert np.array_equal(observations, kept)
    info["active"][:] = False
    observations[:] = 7
    assert env.step(_actions(1, 3)[0])[4]["active"].all()
    env.close()


def test_spaces_and_metadata() -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=0)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.num_envs == 3
    assert env.observation_space.shape == (3, 39)
    assert env.action_space.shape == (3, 8)
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    observations, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    assert rewards.dtype == np.float64
    assert {array.dtype for array in (terminated, truncated, info["active"], info["success"])} == {np.dtype(bool)}
    env.close()


def test_gymnasium_vector_wrappers_work() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(MixedTaskVectorEnv(LIGHT[:1], workers=0))
    env.reset(seed=0)
    total = 0.0
    for action in _actions(200, 1):
        *_, info = (step := env.step(action))
        total += step[1][0]
    assert info["episode"]["r"][0] == pytest.approx(total)
    assert info["episode"]["l"][0] == 200
    env.close()


@pytest.mark.filterwarnings("ignore:Constant.s. may be too high")
@pytest.mark.parametrize("workers", [0, 1])
def test_stop_on_success(workers: int) -> None:
    from metaworld.policies import ENV_POLICY_MAP

    reach = tasks.get("reach")
    env = MixedTaskVectorEnv([reach, reach], workers=workers, stop_on_success=True)
    observations, info = env.reset(seed=0)
    policy = ENV_POLICY_MAP["reach-v3"]()
    steps = 0
    while info["active"].any():
        before = info
        actions = [np.pad(policy.get_action(row.astype(np.float64)), (0, 4)) for row in observations]
        observations, _, terminated, truncated, info = env.step(np.array(actions))
        steps += 1
        assert (terminated == info["success"]).all()
        assert (before["active"] | ~info["active"]).all()
    assert steps < 200
    assert terminated.all()
    assert not truncated.any()
    env.close()


@pytest.mark.parametrize("mask", [np.array([True]), np.array([1, 0, 0]), [True, False, False]])
def test_reset_masks_of_a_wrong_form_are_refused(mask: object) -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=0)
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        env.reset(options={"reset_mask": mask})


def test_bad_input_is_refused_and_changes_nothing() -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=1)
    with pytest.raises(M3DTError, match="reset"):
        env.step(_actions(1, 3)[0])
    env.reset(seed=0)
    with pytest.raises(InvalidValueError, match="at least one"):
        env.reset(options={"reset_mask": np.zeros(3, bool)})
    with pytest.raises(ShapeError, match=r"3; got 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(InvalidValueError, match="-3"):
        env.reset(seed=-3)
    with pytest.raises(ShapeError, match=r"\(3, 8\).*\(3, 6\)"):
        env.step(np.zeros((3, 6), np.float32))
    broken = np.zeros((3, 8), np.float32)
    broken[0, 6:] = np.nan  # beyond the width of cheetah-vel: not used
    broken[1, 2] = np.nan
    with pytest.raises(InvalidValueError, match=r"slot 1 .*ant-dir-0"):
        env.step(broken)
    broken[1, 2] = 0.0
    expected = _alone(LIGHT[0], np.zeros((1, 8), np.float32), seed=0)
    assert np.array_equal(env.step(broken)[0][0], expected[1][0])
    env.close()


def test_bad_construction_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        MixedTaskVectorEnv([])
    with pytest.raises(ConfigError, match="-2"):
        MixedTaskVectorEnv(LIGHT, workers=-2)


@given(names=st.lists(st.sampled_from(tasks.TASKS), min_size=1, max_size=40), workers=st.integers(1, 8))
def test_share_out_gives_every_slot_to_one_worker_and_balances(names: list[tasks.TaskSpec], workers: int) -> None:
    shares = share_out(names, workers)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(names)))
    loads = [sum(_STEP_COST[names[i].domain] for i in share) for share in shares]
    dearest = max(_STEP_COST[task.domain] for task in names)
    assert max(loads) - min(loads) <= dearest + 1e-9


# Processes.


def _step_many(env: MixedTaskVectorEnv) -> None:
    for action in _actions(50, env.num_envs):
        env.step(action)


def _take_turns(env: MixedTaskVectorEnv, first: NDArray[np.bool_]) -> None:
    for group in (first, ~first) * 25:
        env.wait(group)
        env.step_async(_actions(1, env.num_envs)[0], group)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids: list[int], seconds: float = 20.0) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_closing_ends_the_workers_and_is_final() -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=2)
    pids = [worker.pid for worker in env._workers]
    assert all(_alive(pid) for pid in pids)
    env.reset(seed=0)
    env.close()
    env.close()
    assert not _wait_until_gone(pids)
    with pytest.raises(M3DTError, match="closed"):
        env.step(_actions(1, 3)[0])
    with pytest.raises(M3DTError, match="closed"):
        env.reset()


@pytest.mark.parametrize("when", ["idle", "stepping"])
def test_a_dead_worker_is_named_with_its_tasks(when: str) -> None:
    env = MixedTaskVectorEnv(LIGHT, workers=2)
    env.reset(seed=0)
    pids = [worker.pid for worker in env._workers]
    names = [LIGHT[i].name for i in env._shares[1]]
    os.kill(pids[1], signal.SIGKILL)
    if when == "idle":
        _wait_until_gone(pids[1:])
    with pytest.raises(M3DTError, match=rf"worker 1 \(process {pids[1]}, tasks {', '.join(names)}\) died: killed by signal 9"):
        _step_many(env)
    assert env.closed
    assert not _wait_until_gone(pids)


def test_a_worker_that_dies_with_two_groups_under_way_is_named_with_the_tasks_it_has_now() -> None:
    env = MixedTaskVectorEnv(LIGHT[:2], workers=1)
    env.reset(seed=0, options={"tasks": [LIGHT[2], LIGHT[1]]})
    first = np.array([True, False])
    env.step_async(_actions(1, 2)[0], first)
    env.step_async(_actions(1, 2)[0], ~first)
    (pid,) = (worker.pid for worker in env._workers)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(M3DTError, match=rf"tasks {LIGHT[2].name}, {LIGHT[1].name}\) died: killed by signal 9"):
        _take_turns(env, first)
    assert env.closed
    assert not _wait_until_gone([pid])


def test_an_environment_that_cannot_be_made_is_named() -> None:
    missing = dataclasses.replace(LIGHT[0], name="no-such-task")
    with pytest.raises(M3DTError, match="'no-such-task' is not registered here"):
        MixedTaskVectorEnv([missing, LIGHT[1]], workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_task_that_cannot_be_made_on_a_reset_is_named(workers: int) -> None:
    missing = dataclasses.replace(LIGHT[0], name="no-such-task")
    env = MixedTaskVectorEnv(LIGHT[:1], workers=workers)
    with pytest.raises(ConfigError, match="'no-such-task' is not registered here") as caught:  # of the same class everywhere
        env.reset(seed=0, options={"tasks": [missing]})
    assert "Traceback" not in str(caught.value)
    env.close()


SCRIPT = """
from m3dt_agent import tasks
from m3dt_agent.envs.vector import MixedTaskVectorEnv
env = MixedTaskVectorEnv([tasks.get("ant-dir-0"), tasks.get("cheetah-vel-0")], workers=2)
print(*[worker.pid for worker in env._workers], flush=True)
env.reset(seed=0)
while True:
    if not env.reset(seed=0)[1]["active"].all():
        break
    for _ in range(100):
        env.step(env.action_space.sample())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(number: signal.Signals) -> None:
    # The script comes from standard input and has no main guard: workers must not need either.
    parent = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(SCRIPT.encode())
    parent.stdin.close()
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.3)
    parent.send_signal(number)
    assert parent.wait(20) != 0
    assert not _wait_until_gone(pids)
    parent.stdout.close()
    assert parent.stderr is not None
    parent.stderr.close()


def test_a_child_that_holds_the_pipe_does_not_keep_a_worker_alive() -> None:
    # What a process forked by the caller does without knowing: the pipe stays open when the parent dies.
    forked = SCRIPT.replace(
        "env.reset(seed=0)\n",
        "import os, time\nif os.fork() == 0:\n    os.close(1); os.close(2); time.sleep(15); os._exit(0)\nenv.reset(seed=0)\n",
        1,
    )
    parent = subprocess.Popen([sys.executable, "-c", forked], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(0.3)
    parent.kill()
    parent.wait(20)
    parent.stdout.close()
    assert not _wait_until_gone(pids, seconds=10.0)


def test_a_worker_that_cannot_start_is_told_from_one_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no module >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(M3DTError, match=r"environment worker 0 .*cannot start \(exit status 3; .* above\); workers=0"):
        MixedTaskVectorEnv([tasks.get("cheetah-vel-3")], workers=1)
