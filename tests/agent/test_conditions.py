"""What `reset` may be asked for: tasks by name or spec, one or a list, or a prompt with its statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from acting_banks import NAMES

from m3dt_agent import tasks
from m3dt_agent.agent.conditions import Condition, KnownTasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import ConfigError, InvalidValueError, StageError, UnknownTaskError


@pytest.fixture
def known(bank: ExpertBank) -> KnownTasks:
    return KnownTasks(bank.tasks, bank.prompts, bank.statistics)


@pytest.mark.parametrize("task", ["walker-run", np.str_("walker-run"), tasks.get("walker-run")])
def test_one_task_is_one_condition_for_any_number_of_slots(known: KnownTasks, task: Any) -> None:
    found = known.requested(task, None, None, None)
    assert isinstance(found, Condition)
    assert (found.name, found.obs_dim, found.act_dim) == ("walker-run", 24, 6)
    assert found.prompt is known.prompts["walker-run"][0]
    assert found.target_return == known.statistics["walker-run"].target_return


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_list_has_one_condition_per_slot_and_equal_tasks_share_theirs(known: KnownTasks, kind: Any) -> None:
    found = known.requested(kind([NAMES[0], NAMES[2], NAMES[0]]), None, None, np.float32(7))
    assert isinstance(found, list)
    assert [one.name for one in found] == [NAMES[0], NAMES[2], NAMES[0]]
    assert found[0] is found[2]
    assert {one.target_return for one in found} == {7.0}


def test_a_prompt_with_statistics_needs_no_task(known: KnownTasks) -> None:
    prompt, statistics = known.prompts["reach"][0], known.statistics["reach"]
    found = KnownTasks((), {}, {}).requested(None, prompt, statistics, None)
    assert isinstance(found, Condition)
    assert (found.obs_dim, found.act_dim, found.target_return) == (39, 4, statistics.target_return)


@pytest.mark.parametrize(
    "task", [5, 1.5, b"reach", {"reach"}, {"reach": 1}, iter(["reach"]), True, ["reach", 5], ["reach", None], [["reach"]]]
)
def test_something_else_than_tasks_is_refused_with_what_is_valid(known: KnownTasks, task: Any) -> None:
    with pytest.raises(ConfigError, match="task must be a task's name, a TaskSpec, or a list with one per slot; got"):
        known.requested(task, None, None, None)


@pytest.mark.parametrize("task", ["", "reachh", ["reach", "puhs"], tasks.get("push")])
def test_a_task_that_the_agent_does_not_have_is_unknown(known: KnownTasks, task: Any) -> None:
    with pytest.raises(UnknownTaskError, match="task of this agent"):
        known.requested(task, None, None, None)


def test_what_does_not_go_together_is_refused(known: KnownTasks) -> None:
    prompt, statistics = known.prompts["reach"][0], known.statistics["reach"]
    for arguments in (
        (None, None, None),
        ("reach", prompt, statistics),
        (None, prompt, None),
        (None, None, statistics),
        ([], None, None),
    ):
        with pytest.raises(ConfigError):
            known.requested(*arguments, None)
    for wrong in ((statistics, prompt), (prompt.states, statistics), (prompt, {"mean": 0})):
        with pytest.raises(ConfigError, match="must be a Prompt and its TaskStatistics; got"):
            known.requested(None, *wrong, None)
    with pytest.raises(StageError, match="knows no task yet"):
        KnownTasks(known.tasks, {}, {}).requested("reach", None, None, None)


@pytest.mark.parametrize("target", ["5", True, [5.0], np.nan, -np.inf, 10**400])
def test_a_target_return_is_a_finite_number(known: KnownTasks, target: Any) -> None:
    with pytest.raises(InvalidValueError, match="target_return must be a finite number; got"):
        known.requested("reach", None, None, target)


@pytest.mark.parametrize("target", [1e308, -1e308, 1e42])
def test_a_target_return_must_fit_the_model_once_it_is_scaled(known: KnownTasks, target: float) -> None:
    with pytest.raises(InvalidValueError, match=r"target_return -?1e\+\d+ of reach is too large for the model"):
        known.requested("reach", None, None, target)
