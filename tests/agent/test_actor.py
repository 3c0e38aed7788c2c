"""The acting half of an agent: copies for other threads that share the weights, and arguments that cannot work."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from acting_banks import CONFIG, NAMES

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.errors import ConfigError, M3DTError, StageError, UnknownTaskError
from m3dt_agent.model import Routing
from m3dt_agent.tasks import get

STEPS = 40


def play(agent: M3DTAgent, seed: int, before_step: Callable[[], object] = lambda: None) -> Any:
    """The actions of 3 slots in `STEPS` steps, with episodes that open at any time."""
    rng = np.random.default_rng(seed)
    agent.reset(task=[NAMES[seed % len(NAMES)], NAMES[0], NAMES[1]])
    actions = []
    for _ in range(STEPS):
        obs, reward, starts = rng.normal(size=(3, 39)), rng.normal(size=3), rng.random(3) < 0.1
        before_step()
        actions.append(agent.act(obs, reward=reward, reset_mask=starts))
    return np.stack(actions)


@pytest.mark.parametrize("experts", ["none", "mixture", 1, Routing(max_experts=2), Routing(mass=0.6)], ids=str)
def test_copies_in_threads_act_as_one_agent_alone_to_the_last_bit(agent: M3DTAgent, experts: Any) -> None:
    agent.experts = experts
    alone = [play(agent, seed) for seed in range(2)]
    at_once = threading.Barrier(2)

    def other_thread(one: M3DTAgent, seed: int) -> Any:
        torch.set_num_threads(1)  # as in the thread that played alone: it is part of the result
        return play(one, seed, at_once.wait)

    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(other_thread, [agent, agent.copy()], range(2)))
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_copy_shares_the_weights_and_nothing_else(agent: M3DTAgent) -> None:
    agent.experts = Routing(max_experts=1)
    expected = play(agent, 0)
    other = agent.copy()
    assert all(a is b for a, b in zip(agent.model.parameters(), other.model.parameters(), strict=True))
    assert not {id(module) for module in agent.model.modules()} & {id(module) for module in other.model.modules()}
    assert not [state for module in other.model.modules() for state in vars(module).values() if isinstance(state, torch.Tensor)]
    for name in ("experts", "bank", "tasks", "content_hash", "statistics", "prompts"):
        assert getattr(other, name) == getattr(agent, name)
    with pytest.raises(StageError, match="act before reset"):
        other.act(np.zeros((3, 39)))
    with pytest.raises(StageError, match="no pass was routed"):
        other.routing_usage()
    agent.reset(task=NAMES[0])
    agent.act(np.zeros(39))
    other.experts = "none"
    assert agent.experts == Routing(max_experts=1)
    play(other, 1)
    assert agent.routing_usage().kept.shape == (CONFIG.n_layers, 1)
    np.testing.assert_array_equal(play(agent, 0), expected)


def test_what_changes_the_weights_in_place_changes_both(agent: M3DTAgent) -> None:
    other = agent.copy()
    agent.model.double()
    assert other.dtype == torch.float64
    other.reset(task=NAMES[0])
    assert np.isfinite(other.act(np.zeros(39))).all()


def test_two_threads_on_one_agent_are_told_apart(agent: M3DTAgent) -> None:
    """One thread is held inside `act`; whatever another one asks of the agent is refused and changes nothing."""
    expected = play(agent, 0)
    held, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        held.set()
        assert go_on.wait(30)

    calls: list[Callable[[], object]] = [
        lambda: agent.act(np.zeros((3, 39))),
        lambda: agent.reset(task=NAMES[0]),
        lambda: setattr(agent, "experts", "none"),
    ]
    hook = agent.model.final_norm.register_forward_hook(hold)
    with ThreadPoolExecutor(1) as threads:
        playing = threads.submit(play, agent, 0)
        assert held.wait(30)
        for call in calls:
            with pytest.raises(StageError, match="another thread is using this agent"):
                call()
        hook.remove()
        go_on.set()
        np.testing.assert_array_equal(playing.result(), expected)
    assert agent.experts == "mixture"


def test_an_agent_can_be_pickled(agent: M3DTAgent) -> None:
    expected = play(agent, 0)
    np.testing.assert_array_equal(play(pickle.loads(pickle.dumps(agent)), 0), expected)


DEVICES = "device must be one of cpu.*got "
BAD: dict[str, tuple[dict[str, Any], type[M3DTError], str]] = {
    "a config that is a dict": (
        {"config": dataclasses.asdict(CONFIG)},
        ConfigError,
        "config must be of type ModelConfig; got dict",
    ),
    "a number of tasks": ({"tasks": 4}, ConfigError, "tasks must be names of .*; got 4"),
    "a task that is a number": ({"tasks": [4]}, UnknownTaskError, "unknown task 4"),
    "a task that is a list": ({"tasks": [["reach"]]}, UnknownTaskError, "unknown task"),
    "an unknown task": ({"tasks": ["reahc"]}, UnknownTaskError, "did you mean reach"),
    "a device that is none": ({"device": "gpu"}, ConfigError, DEVICES + "'gpu'"),
    "a device that is a number": ({"device": 0}, ConfigError, DEVICES + "'0'"),
    "a device that is empty": ({"device": ""}, ConfigError, DEVICES + "''"),
    "a device that only counts": ({"device": "meta"}, ConfigError, DEVICES + "'meta'"),
    "a precision that is none": ({"precision": "int8"}, ConfigError, "precision must be 'float32', .*; got 'int8'"),
    "a precision in a list": ({"precision": ["auto"]}, ConfigError, "precision must be"),
    "a precision of torch": ({"precision": torch.bfloat16}, ConfigError, "precision must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_agent_that_cannot_be_made_says_what_is_valid(case: str) -> None:
    changes, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        M3DTAgent(**({"config": CONFIG, "tasks": NAMES} | changes))


@pytest.mark.parametrize("tasks", ["reach", get("reach"), ("reach",), np.array(["reach"]), {"reach": 1}])
def test_tasks_may_come_as_any_collection_and_one_task_alone(tasks: Any) -> None:
    assert [task.name for task in M3DTAgent(CONFIG, tasks).tasks] == ["reach"]


@pytest.mark.parametrize("experts", [np.int64(1), np.uint8(1)])
def test_an_expert_may_be_an_integer_of_numpy(agent: M3DTAgent, experts: Any) -> None:
    agent.experts = 1
    expected = play(agent, 0)
    agent.experts = experts
    assert type(agent.experts) is int
    np.testing.assert_array_equal(play(agent, 0), expected)


@pytest.mark.parametrize(
    "experts",
    [
        1.0,
        1.5,
        np.float64(1),
        True,
        np.True_,
        None,
        [1],
        (0, 1),
        np.array([0, 1]),
        np.array(1),
        "1",
        b"none",
        3,
        -1,
        np.int64(3),
    ],
)
def test_experts_that_cannot_act_are_refused_and_change_nothing(agent: M3DTAgent, experts: Any) -> None:
    expected = play(agent, 0)
    with pytest.raises(ConfigError, match="experts must be one of 'none', 'mixture', 0, 1, 2, a Routing for this bank; got"):
        agent.experts = experts
    np.testing.assert_array_equal(play(agent, 0), expected)


@pytest.mark.parametrize("mode", ["fixed", "", None, ["rewards"], np.array(["rewards"]), b"rewards", 1])
def test_a_mode_that_is_none_is_refused(agent: M3DTAgent, mode: Any) -> None:
    with pytest.raises(ConfigError, match="rtg_mode must be 'rewards' or 'constant'; got"):
        agent.reset(task=NAMES[0], rtg_mode=mode)


@pytest.mark.parametrize("task", [5, b"reach", {"reach"}, [5]])
def test_what_is_no_task_is_refused_and_changes_nothing(agent: M3DTAgent, task: Any) -> None:
    expected = play(agent, 0)
    with pytest.raises(ConfigError, match="task must be a task's name, a TaskSpec, or a list with one per slot; got"):
        agent.reset(task)
    np.testing.assert_array_equal(play(agent, 0), expected)
