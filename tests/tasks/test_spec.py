"""A task of one's own as data: what it may say, how it is scored, and that JSON gives it back."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_tasks import SWING

from m3dt_agent.errors import ConfigError
from m3dt_agent.tasks import TASKS, Linear, TaskSpec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "name must be"),
        ({"name": "a/b"}, "name must be"),
        ({"name": "a.b"}, "name must be"),  # Minari refuses it in a dataset id
        ({"name": "x" * 65}, "name must be"),
        ({"name": "٣"}, "name must be"),
        ({"name": 3}, "name must be"),
        ({"domain": ""}, "domain must be"),
        ({"obs_dim": 0}, "obs_dim must be"),
        ({"obs_dim": 10**9}, "obs_dim must be"),
        ({"act_dim": 1.0}, "act_dim must be"),
        ({"max_episode_steps": True}, "max_episode_steps must be"),
        ({"return_scale": 0.0}, "return_scale must be"),
        ({"return_scale": float("nan")}, "return_scale must be"),
        ({"score": "best"}, "score must be"),
        ({"env": "os:system"}, "env must be"),
        ({"env_kwargs": {"a": object()}}, "env_kwargs must be"),
        ({"env_kwargs": {"a": float("inf")}}, "env_kwargs must be"),
        ({"action_low": (float("-inf"),)}, "action_low must be 1 finite"),
        ({"action_low": (-1.0, -1.0)}, "action_low must be 1 finite"),
        ({"action_low": (2.0,)}, "below action_high"),
        ({"observation": ("",)}, "observation must be"),
    ],
)
def test_a_value_that_cannot_be_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SWING, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_linear_score_needs_two_finite_bounds(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="low < high"):
        Linear(low, high)


def test_json_and_pickle_give_every_task_back() -> None:
    dicts = dataclasses.replace(SWING, observation=("position", "goal/xyz"), env_kwargs={"g": [1, {"a": None}]})
    for task in (*TASKS, SWING, dicts):
        assert TaskSpec.from_dict(json.loads(json.dumps(task.to_dict()))) == task
        assert pickle.loads(pickle.dumps(task)) == task
        assert len({task, pickle.loads(pickle.dumps(task))}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x"}, "lacks act_dim"),
        ({**SWING.to_dict(), "colour": 1}, "colour"),
        ({**SWING.to_dict(), "score": {"low": 0.0, "high": "1"}}, "score"),
        ({**SWING.to_dict(), "obs_dim": "3"}, "obs_dim must be an integer"),
    ],
)
def test_a_table_that_is_no_task_is_refused_by_its_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskSpec.from_dict(values, name="own.toml")


def test_scores_follow_the_rule() -> None:
    assert SWING.normalized_score(-150.0) == 90.0
    assert SWING.normalized_score(-1600.0) == 0.0
    assert dataclasses.replace(SWING, score=Linear(-1500.0, 0.0, clip=False)).normalized_score(150.0) == 110.0
    assert dataclasses.replace(SWING, score="return").normalized_score(-150.0) == -150.0
    solved = dataclasses.replace(SWING, score="success")
    assert solved.has_success
    assert (solved.normalized_score(0.0, True), solved.normalized_score(0.0, False)) == (100.0, 0.0)
    with pytest.raises(ConfigError, match="success"):
        solved.normalized_score(0.0)


@given(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_linear_scores_are_0_and_100_at_the_bounds_and_grow_between(value: float, low: float, span: float) -> None:
    rule = Linear(low, low + span)
    assert rule.of(rule.low) == 0.0
    assert rule.of(rule.high) == pytest.approx(100.0)
    assert 0.0 <= rule.of(value) <= rule.of(value + 1.0) <= 100.0
