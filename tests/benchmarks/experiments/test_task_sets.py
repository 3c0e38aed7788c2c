"""Task sets: the published ones are not by the rule, samples are, and the held-out tasks stay out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.experiments import EXPERIMENTS, SCALES, cells
from benchmarks.experiments.task_sets import (
    HELD_OUT,
    RATIO,
    TOLERANCE,
    deviation,
    deviations_table,
    domain_counts,
    family,
    held_out_by_rule,
    named,
    published_deviations,
    reduced,
    same_family_pairs,
    sample,
)
from m3dt_agent import quickstart
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.tasks import DOMAINS, TASKS, get, task_set

SIZES = (10, 20, 40, 80, 120)


def test_the_published_sets_own_deviations() -> None:
    found = {(row.name, row.seed): row for row in published_deviations()}
    assert found["mt10", 2].difficulty == pytest.approx(3.01, abs=0.01)
    assert tuple(found["mt120", 0].domains.values()) == (34, 20, 37, 29)
    assert all(abs(row.difficulty) < 2 for key, row in found.items() if key != ("mt10", 2))
    assert found["mt160", 1].difficulty == 0.0
    table = deviations_table(found.values())
    assert "+3.01   3/1/4/2" in table
    assert "34/20/37/29         38/22/30/30" in table


@pytest.mark.parametrize("size", SIZES)
def test_samples_have_the_difficulty_and_the_ratio(size: int) -> None:
    full = np.mean([task.published_score for task in TASKS])
    seeds, found = range(20 if size <= 20 else 6), []
    for seed in seeds:
        names = sample(size, seed, exclude=HELD_OUT)
        specs = [get(name) for name in names]
        assert len(set(names)) == size
        assert not set(names) & set(HELD_OUT)
        assert abs(np.mean([task.published_score for task in specs]) - full) <= TOLERANCE
        counts = Counter(task.domain for task in specs)
        for domain in DOMAINS:
            assert abs(counts[domain] - size * RATIO[domain] / 16) < 1
        found.append(names)
    assert len(set(found)) == len(seeds)
    assert found[0] == sample(size, 0, exclude=HELD_OUT)


def test_counts_of_any_size_sum_up_and_differ_by_less_than_one() -> None:
    for size in range(1, 161):
        counts = domain_counts(size)
        assert sum(counts.values()) == size
        assert all(abs(counts[domain] - size * RATIO[domain] / 16) < 1 for domain in DOMAINS)
    assert domain_counts(160) == {domain: 10 * share for domain, share in RATIO.items()}


def test_samples_are_more_diverse_than_chance() -> None:
    rng = np.random.default_rng(0)
    counts = domain_counts(40)
    ours = [same_family_pairs(get(name) for name in sample(40, seed)) for seed in range(20)]
    chance = []
    for _ in range(20):
        groups = [[task for task in TASKS if task.domain == domain] for domain in DOMAINS]
        picked = [g[i] for g in groups for i in rng.choice(len(g), counts[g[0].domain], replace=False)]
        chance.append(same_family_pairs(picked))
    assert np.mean(ours) < 0.75 * np.mean(chance)


def test_every_quarter_of_the_difficulty_is_in_a_sample() -> None:
    for domain in DOMAINS:
        group = sorted((task for task in TASKS if task.domain == domain), key=lambda task: task.published_score)
        quarters = [{task.published_score for task in group[i * len(group) // 4 : (i + 1) * len(group) // 4]} for i in range(4)]
        scores = {task.published_score for name in sample(40, 3) if (task := get(name)).domain == domain}
        assert all(quarter & scores for quarter in quarters)


def test_difficulty_may_be_measured_anew() -> None:
    rng = np.random.default_rng(5)
    measured = {task.name: float(rng.uniform(0, 100)) for task in TASKS}
    names = sample(40, 0, measured)
    assert abs(np.mean([measured[name] for name in names]) - np.mean(list(measured.values()))) <= TOLERANCE
    assert names != sample(40, 0)
    with pytest.raises(ConfigError, match="difficulty has no entry for basketball"):
        sample(40, 0, {name: value for name, value in measured.items() if name != "basketball"})


def test_what_cannot_be_sampled() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        sample(0, 0)
    with pytest.raises(ConfigError, match="51 tasks of metaworld"):
        sample(163, 0)
    with pytest.raises(UnknownTaskError, match="walker"):
        sample(10, 0, exclude=("walker-rum",))
    with pytest.raises(ConfigError, match="no draw of 1 tasks"):
        sample(1, 0, {task.name: 100.0 * (i % 2) for i, task in enumerate(TASKS)})


def test_families() -> None:
    assert family(get("door-open")) == family(get("door-lock")) != family(get("drawer-open"))
    assert family(get("cheetah-run")) != family(get("cheetah-vel-3"))
    assert len({family(task) for task in TASKS if task.domain in ("ant-dir", "cheetah-vel")}) == 16


def test_the_held_out_tasks_are_those_of_the_rule() -> None:
    assert held_out_by_rule() == HELD_OUT
    assert Counter(get(name).domain for name in HELD_OUT) == dict.fromkeys(DOMAINS, 4)
    assert abs(deviation("held out", 0, HELD_OUT).difficulty) <= TOLERANCE
    assert not set(HELD_OUT) & set(quickstart.TASKS), "the quickstart was tuned on its tasks"


@pytest.mark.parametrize("scale", SCALES)
def test_only_published_sets_hold_held_out_tasks(scale: str) -> None:
    seen = set()
    for name, experiment in EXPERIMENTS.items():
        tasks = {task for cell in cells(name, scale) for task in cell.tasks}
        assert experiment.published or not tasks & set(HELD_OUT), name
        seen.add(experiment.published)
    assert seen == {True, False}


def test_sets_by_name() -> None:
    assert named("mt40", 2) == tuple(task.name for task in task_set("mt40", 2))
    assert named("sampled-40", 2) == sample(40, 2, exclude=HELD_OUT)
    assert named("only-walker-run", 0) == ("walker-run",)
    for wrong in ("mt30", "sampled-", "only-walker", "sampled-4x"):
        with pytest.raises(UnknownTaskError):
            named(wrong, 0)
    with pytest.raises(UnknownTaskError):
        named("mt40", 3)


def test_reduced_sets_keep_every_domain() -> None:
    names = named("mt160", 0)
    few = reduced(names, 13)
    assert Counter(get(name).domain for name in few) == {"metaworld": 4, "dmcontrol": 3, "ant-dir": 3, "cheetah-vel": 3}
    assert [name for name in names if name in few] == list(few)
    assert reduced(names, 200) == names
