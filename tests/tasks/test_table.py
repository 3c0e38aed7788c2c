"""The task table: complete, consistent, and scored as the paper scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent import tasks
from m3dt_agent.errors import ConfigError, M3DTError, UnknownTaskError

finite = st.floats(-1e5, 1e5)


def test_table_has_the_published_shape() -> None:
    assert len(tasks.TASKS) == 160 == len({task.name for task in tasks.TASKS})
    assert [len(tasks.by_domain(domain)) for domain in tasks.DOMAINS] == [50, 30, 40, 40]
    assert sum(task.custom for task in tasks.TASKS) == 11
    assert max(task.obs_dim for task in tasks.TASKS) == tasks.MAX_OBS_DIM
    assert max(task.act_dim for task in tasks.TASKS) == tasks.MAX_ACT_DIM


def test_goals_stand_where_they_belong() -> None:
    for task in tasks.TASKS:
        assert (task.goal_direction is not None) == (task.domain == "ant-dir")
        assert (task.goal_velocity is not None) == (task.domain == "cheetah-vel")
    velocities = [task.goal_velocity for task in tasks.by_domain("cheetah-vel")]
    assert velocities == pytest.approx([0.075 * (i + 1) for i in range(40)])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("size", [10, 20, 40, 80, 120, 160])
def test_sets_hold_distinct_known_tasks(size: int, seed: int) -> None:
    chosen = tasks.task_set(f"mt{size}", seed)
    assert len({task.name for task in chosen}) == size
    assert set(chosen) <= set(tasks.TASKS)


def test_resolve_mixes_names_sets_domains_and_specs_without_repeats() -> None:
    spec = tasks.get("walker-run")
    found = tasks.resolve(["reach", spec, "walker-run", "ant-dir", "mt10"])
    assert found[:2] == (tasks.get("reach"), spec)
    assert len(found) == len(set(found))
    assert set(tasks.task_set("mt10")) <= set(found)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: tasks.get("walker-rn"), "walker-run"),
        (lambda: tasks.task_set("mt11"), "mt10"),
        (lambda: tasks.task_set("mt10", seed=3), "seed0"),
        (lambda: tasks.by_domain("atari"), "metaworld"),
        (lambda: tasks.resolve(["reahc"]), "reach"),
        (lambda: tasks.get(None), "basketball"),  # type: ignore[arg-type]
    ],
)
def test_unknown_names_are_answered_with_valid_ones(call: object, hint: str) -> None:
    with pytest.raises(UnknownTaskError, match=hint) as caught:
        call()  # type: ignore[operator]
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, M3DTError)
    assert not str(caught.value).startswith(("'", '"'))


@given(finite)
def test_scores_of_locomotion_are_clipped_and_monotone(episode_return: float) -> None:
    for name in ("ant-dir-0", "cheetah-vel-0"):
        task = tasks.get(name)
        assert 0.0 <= task.normalized_score(episode_return) <= 100.0
        assert task.normalized_score(episode_return) <= task.normalized_score(episode_return + 1.0)


@pytest.mark.parametrize(
    ("name", "episode_return", "success", "score"),
    [
        ("reach", 4500.0, True, 100.0),
        ("reach", 4500.0, False, 0.0),
        ("walker-run", 584.0, None, 58.4),
        ("ant-dir-0", 250.0, None, 50.0),
        ("cheetah-vel-7", -65.0, None, 50.0),
        ("cheetah-vel-7", -120.0, None, 0.0),
        ("cheetah-vel-7", -20.0, None, 100.0),
    ],
)
def test_normalized_scores(name: str, episode_return: float, success: bool | None, score: float) -> None:
    assert tasks.get(name).normalized_score(episode_return, success) == pytest.approx(score)


def test_success_is_required_where_it_is_the_score() -> None:
    with pytest.raises(ConfigError, match="reach"):
        tasks.get("reach").normalized_score(4500.0)
