"""Statistics of rows, against scipy as an independent oracle, and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from row_examples import row

from m3dt_agent.errors import ConfigError, InvalidValueError
from m3dt_agent.scores import interquartile_mean, summarize, wilson_interval
from m3dt_agent.tasks import Linear


@given(n=st.integers(1, 500), data=st.data(), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_interval_is_scipys(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, n, confidence), (expected.low, expected.high), atol=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"), [(0, 0, 0.95), (2, 1, 0.95), (-1, 3, 0.95), (1, 2, 1.0), (1, 2, 0.0)]
)
def test_wilson_interval_refuses_what_makes_no_sense(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(InvalidValueError):
        wilson_interval(successes, n, confidence)


matrices = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e3, 1e3))


@given(matrices)
def test_interquartile_mean_is_the_trimmed_mean_rliable_takes(scores: Any) -> None:
    assert interquartile_mean(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None), abs=1e-9)
    np.testing.assert_allclose(interquartile_mean(scores, axis=1), scipy.stats.trim_mean(scores, 0.25, axis=1), atol=1e-9)


def test_interquartile_mean_ignores_outliers_and_refuses_nothing() -> None:
    assert interquartile_mean([1.0, 2.0, 3.0, 1e9]) == 2.5
    with pytest.raises(InvalidValueError):
        interquartile_mean([])


def test_intervals_of_one_run_are_scipys_bootstrap_of_its_episodes() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40)
    rows = [row(seed=seed, episode_return=value) for seed, value in enumerate(values)]
    ours = summarize(rows, resamples=20_000).tasks["walker-run"].return_interval
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(ours, (theirs.low, theirs.high), atol=0.03 * values.std())
    assert summarize(rows) == summarize(rows)


def test_summary_of_one_run() -> None:
    returns = {"walker-run": [100.0, 300.0], "cheetah-vel-25": [-100.0, -30.0, -65.0], "reach": [4000.0, 100.0]}
    rows = [
        row(task, seed, value, success=value > 1000 if task == "reach" else None)
        for task, values in returns.items()
        for seed, value in enumerate(values)
    ]
    summary = summarize(rows)
    assert (summary.policy, summary.runs, summary.episodes) == ("test", 1, 7)
    assert {name: task.mean_score for name, task in summary.tasks.items()} == pytest.approx(
        {"walker-run": 20.0, "cheetah-vel-25": 50.0, "reach": 50.0}
    )
    assert summary.mean_score == pytest.approx(40.0)  # tasks weigh the same, however many episodes they have
    assert summary.iqm_score == pytest.approx(scipy.stats.trim_mean([20.0, 50.0, 50.0], 0.25))
    assert summary.tasks["walker-run"].mean_return == 200.0
    assert summary.tasks["walker-run"].success_rate is None
    assert summary.tasks["reach"].success_rate == summary.success_rate == 0.5
    assert summary.tasks["reach"].success_interval == wilson_interval(1, 2)
    low, high = summary.mean_interval
    assert 10.0 / 3 <= low < summary.mean_score < high <= 230.0 / 3
    assert summary.tasks["cheetah-vel-25"].return_interval[0] == pytest.approx(-100.0, abs=12)


def test_whole_training_seeds_are_resampled() -> None:
    """Two runs that are 10 and 90 on every task: resampling cells would give a narrow interval, runs give the full width."""
    rows = [
        row(f"cheetah-vel-{k}", seed, -100.0 + 0.7 * score, bank_hash=f"run{score}")
        for score in (10, 90)
        for k in range(20)
        for seed in range(5)
    ]
    summary = summarize(rows)
    assert summary.runs == 2
    assert summary.mean_score == pytest.approx(50.0)
    np.testing.assert_allclose(summary.mean_interval, (10.0, 90.0))
    np.testing.assert_allclose(summary.iqm_interval, (10.0, 90.0))
    np.testing.assert_allclose(summary.tasks["cheetah-vel-0"].score_interval, (10.0, 90.0))


def test_intervals_of_one_run_cover_the_true_mean_as_often_as_they_say() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        rows = [row(f"cheetah-vel-{k}", s, -65.0 + rng.normal() * 10) for k in range(8) for s in range(25)]
        low, high = summarize(rows, confidence=0.9, resamples=300).mean_interval
        covered += low <= 50.0 <= high
    assert 0.82 <= covered / trials <= 0.96


def test_summarize_refuses_rows_that_do_not_belong_together() -> None:
    with pytest.raises(ConfigError, match="got no rows"):
        summarize([])
    with pytest.raises(ConfigError, match="got a, b"):
        summarize([row(policy="a"), row(policy="b")])
    with pytest.raises(ConfigError, match="more than once"):
        summarize([row(), row()])
    with pytest.raises(ConfigError, match=r"run y has no episode of walker-run"):
        summarize([row(bank_hash="x"), row("reach", bank_hash="x"), row("reach", bank_hash="y")])
    with pytest.raises(InvalidValueError):
        summarize([row()], confidence=1.5)


def test_returns_are_averaged_with_nothing_else() -> None:
    raw = [row("own-arm", seed, -700.0 + seed, score="return") for seed in range(3)]
    both = summarize([*raw, *(row(seed=seed, episode_return=500.0) for seed in range(2))])
    alone = summarize([row(seed=seed, episode_return=500.0) for seed in range(2)])
    assert (both.mean_score, both.iqm_score, both.episodes) == (alone.mean_score, alone.iqm_score, 5)
    arm = both.tasks["own-arm"]
    assert (arm.mean_score, arm.mean_return, arm.on_scale, arm.rule) == (-699.0, -699.0, False, "return")
    only = summarize(raw)
    assert np.isnan([only.mean_score, only.iqm_score, *only.mean_interval, *only.iqm_interval]).all()
    assert only.tasks == {"own-arm": arm}


def test_one_task_has_one_rule() -> None:
    rows = [row("own-arm", 0, 5.0, score="return"), row("own-arm", 1, 5.0, score=Linear(0.0, 10.0))]
    with pytest.raises(ConfigError, match="'own-arm' are scored by different rules"):
        summarize(rows)
