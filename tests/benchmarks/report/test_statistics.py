"""Statistics against scipy, against rliable's formulas written out, and by simulated experiments whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from benchmark_runs import TASKS, cell, episode, facts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.records import CellResult
from benchmarks.report import statistics
from benchmarks.report.statistics import Scores
from m3dt_agent.errors import ConfigError
from m3dt_agent.scores import Floats

SEEDS, N_TASKS = 10, 8


def scores(matrices: Any, env_seeds: Any = None) -> Scores:
    """Scores of (R, M, N) episodes."""
    matrices = np.asarray(matrices, dtype=np.float64)
    runs, tasks, n = matrices.shape
    drawn = tuple(tuple(range(n)) if env_seeds is None else tuple(env_seeds) for _ in range(runs))
    return Scores(tuple(range(runs)), tuple(f"task{m}" for m in range(tasks)), tuple(matrices), drawn)


def cells(matrix: Any) -> Scores:
    """Scores with one episode per cell of an (R, M) matrix."""
    return scores(np.asarray(matrix)[:, :, None])


matrices = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(0, 100) | st.sampled_from([0.0, 50.0]),
)


# --- point estimates -------------------------------------------------------------------------------------------------------


@given(matrices)
def test_mean_and_iqm_are_scipys(matrix: Floats) -> None:
    assert float(statistics.iqm(matrix)) == pytest.approx(scipy.stats.trim_mean(matrix, 0.25, axis=None), abs=1e-6)
    assert float(statistics.mean(matrix)) == pytest.approx(np.mean([x for row in matrix for x in row]), abs=1e-6)


def slow_improvement(x: Floats, y: Floats) -> float:
    """Agarwal et al. 2021, section 4.3: over tasks, the mean of S(x, y) = 1, ½ or 0 for x >, =, < y over all pairs of runs."""
    total = 0.0
    for m in range(x.shape[1]):
        pairs = itertools.product(x[:, m], y[:, m])
        total += sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / (x.shape[0] * y.shape[0])
    return total / x.shape[1]


@given(st.data(), st.integers(1, 6))
def test_the_probability_of_improvement_is_rliables_and_mann_whitneys(data: st.DataObject, n_tasks: int) -> None:
    elements = st.floats(0, 100) | st.sampled_from([0.0, 50.0, 100.0])  # ties
    x, y = (data.draw(arrays.arrays(np.float64, (data.draw(st.integers(1, 7)), n_tasks), elements=elements)) for _ in range(2))
    found = float(statistics.probability_of_improvement(x, y))
    assert found == pytest.approx(slow_improvement(x, y), abs=1e-6)
    u = [scipy.stats.mannwhitneyu(x[:, m], y[:, m], method="asymptotic").statistic for m in range(n_tasks)]
    assert found == pytest.approx(np.mean(u) / (len(x) * len(y)), abs=1e-6)
    assert float(statistics.probability_of_improvement(y, x)) == pytest.approx(1 - found, abs=1e-6)


@given(matrices)
def test_performance_profiles_count_cells_above_each_score(matrix: Floats) -> None:
    thresholds = np.array([-1.0, 0.0, 12.5, 50.0, 99.0, 100.0])
    found = statistics.performance_profile(matrix, thresholds)
    wanted = [sum(score > tau for row in matrix for score in row) / matrix.size for tau in thresholds]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found, scipy.stats.ecdf(matrix.ravel()).sf.evaluate(thresholds), atol=1e-6)


# --- intervals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [statistics.mean, statistics.iqm])
def test_the_bootstrap_over_seeds_is_a_loop_over_the_same_resamples(statistic: Callable[[Floats], Floats]) -> None:
    matrix = np.random.default_rng(3).uniform(0, 100, (7, 5))
    found = statistics.estimate(cells(matrix), statistic, resamples=400, seed=11)
    rows = statistics.seed_rows(7, 400, np.random.default_rng(11))
    oracle = {statistics.mean: np.mean, statistics.iqm: lambda values: scipy.stats.trim_mean(values, 0.25, axis=None)}[
        statistic
    ]
    draws = [oracle(np.array([matrix[r] for r in drawn])) for drawn in rows]
    tail = scipy.stats.norm.cdf(-np.sqrt(7 / 6) * scipy.stats.t.ppf(0.975, 6))
    np.testing.assert_allclose((found.low, found.high), np.quantile(draws, [tail, 1 - tail]), atol=1e-6)
    assert found.value == pytest.approx(oracle(matrix), abs=1e-6)
    assert not found.conditional


def test_the_improvements_bootstrap_is_a_loop_over_the_same_resamples() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.uniform(0, 100, (6, 4)), rng.uniform(0, 100, (5, 4))
    found = statistics.improvement(cells(x), cells(y), resamples=300, seed=2)
    rng = np.random.default_rng(2)
    first, second = statistics.seed_rows(6, 300, rng), statistics.seed_rows(5, 300, rng)
    draws = [slow_improvement(x[i], y[j]) for i, j in zip(first, second, strict=True)]
    np.testing.assert_allclose((found.low, found.high), statistics.interval(draws, 5), atol=1e-6)


def test_profile_bands_hold_the_profile_of_many_seeds() -> None:
    matrix = np.random.default_rng(8).uniform(0, 100, (30, 4))
    thresholds = np.linspace(0, 100, 11)
    low, high = statistics.profile_band(cells(matrix), thresholds)
    profile = statistics.performance_profile(matrix, thresholds)
    assert (low <= profile).all()
    assert (profile <= high).all()
    assert (high - low)[5] == pytest.approx(2 * 2.09 * np.sqrt(0.25 / 120), rel=0.35)  # 120 independent cells, binomial


def test_estimates_do_not_depend_on_how_resamples_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    many, few = cells(rng.uniform(0, 100, (6, 3))), cells(rng.uniform(0, 100, (5, 3)))
    whole = statistics.estimate(many, statistics.iqm), statistics.improvement(many, few)
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 1_000)
    assert (statistics.estimate(many, statistics.iqm), statistics.improvement(many, few)) == whole


@pytest.mark.parametrize("effect", ["normal", "skewed"])
@pytest.mark.parametrize("statistic", [statistics.mean, statistics.iqm])
def test_whole_seeds_cover_the_truth_and_tasks_by_themselves_do_not(statistic: Callable[[Floats], Floats], effect: str) -> None:
    """Ten seeds that lift or lower all tasks together: 93 to 97% of the intervals must hold the true score, 50."""
    experiments, resamples = (1_500, 1_000) if effect == "normal" else (300, 500)
    rng = np.random.default_rng(0)
    size = (experiments, SEEDS, 1)
    seed_effects = rng.normal(size=size) if effect == "normal" else rng.exponential(size=size) - 1
    matrices = 50 + np.linspace(-10, 10, N_TASKS) + 3 * seed_effects + 5 * rng.normal(size=(experiments, SEEDS, N_TASKS))
    whole = statistics.seed_rows(SEEDS, resamples, rng)
    single = rng.integers(SEEDS, size=(resamples, SEEDS, N_TASKS))  # rliable's bootstrap: each task's runs by themselves
    held = np.zeros(3)
    for matrix in matrices:
        draws = statistic(matrix[whole])
        per_task = np.quantile(statistic(matrix[single, np.arange(N_TASKS)]), [0.025, 0.975])
        intervals = statistics.interval(draws, SEEDS), np.quantile(draws, [0.025, 0.975]), per_task
        held += [low <= 50 <= high for low, high in intervals]
    expanded, percentile, rliable = held / experiments
    if effect == "normal":
        assert 0.93 <= expanded <= 0.97
        assert percentile < 0.93  # why the percentiles are expanded
    assert expanded > percentile
    assert rliable < 0.82


def test_the_improvements_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(4)
    spread = np.hypot(3, 5)
    truth = scipy.stats.norm.cdf(4 / (np.sqrt(2) * spread))
    held = []
    for _ in range(400):
        x, y = (mean + 3 * rng.normal(size=(SEEDS, 1)) + 5 * rng.normal(size=(SEEDS, N_TASKS)) for mean in (54.0, 50.0))
        found = statistics.improvement(cells(x), cells(y), resamples=400)
        held.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(held) <= 0.98


# --- under five seeds --------------------------------------------------------------------------------------------------------


def test_under_five_seeds_episodes_are_resampled_and_the_estimate_says_so() -> None:
    episodes = np.random.default_rng(6).normal(50, 10, (1, 4, 25))
    found = statistics.estimate(scores(episodes), resamples=4_000)
    error = np.sqrt((episodes.var(axis=2) / 25).sum()) / 4
    assert found.conditional
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), abs=0.15 * error)


def test_two_seeds_far_apart_are_not_hidden_by_their_episodes() -> None:
    quiet = np.zeros((2, 3, 5)) + np.array([10.0, 30.0])[:, None, None]
    found = statistics.estimate(scores(quiet))
    assert (found.low, found.value, found.high) == (10.0, 20.0, 30.0)
    assert found.conditional


def test_five_seeds_speak_of_other_seeds() -> None:
    assert not statistics.estimate(cells(np.random.default_rng(0).uniform(size=(5, 2)))).conditional


# --- differences -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(5, 12))
def test_a_difference_over_seeds_is_scipys_paired_t_test(seed: int, n_seeds: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(50, 10, (2, n_seeds, 4, 3))
    found = statistics.paired_difference(scores(a), scores(b))
    test = scipy.stats.ttest_rel(a.mean(axis=(1, 2)), b.mean(axis=(1, 2)))
    interval = test.confidence_interval(0.95)
    estimate = found.estimate
    np.testing.assert_allclose(
        (estimate.low, estimate.high, found.p_value), (interval.low, interval.high, test.pvalue), atol=1e-6
    )
    assert (found.verdict == "undecided") == (test.pvalue > 0.05)
    assert (found.seeds, found.tasks, estimate.conditional) == (n_seeds, 4, False)


def test_pairing_takes_out_what_both_methods_share() -> None:
    """Episodes differ by 20 points from start to start, the methods by 1: only the pairs can tell."""
    rng = np.random.default_rng(9)
    shared, noise = rng.normal(0, 20, (1, 6, 25)), rng.normal(0, 1, (2, 1, 6, 25))
    a, b = scores(50 + shared + noise[0]), scores(49 + shared + noise[1])
    found = statistics.paired_difference(a, b)
    assert found.verdict == "better"
    assert statistics.paired_difference(b, a).verdict == "worse"
    assert found.estimate.conditional
    assert found.p_value < 0.01
    apart = dataclasses.replace(b, episodes=(b.episodes[0][:, ::-1],))
    assert statistics.paired_difference(a, apart).verdict == "undecided"


def test_only_common_seeds_and_episodes_are_compared_in_any_order_of_tasks() -> None:
    a = Scores((0, 1, 2), ("x", "y"), tuple(np.full((2, 2), 50.0 + r) for r in range(3)), ((7, 8), (7, 8), (7, 8)))
    b = Scores(
        (2, 1, 5), ("y", "x"), (np.array([[9.0, 40.0]] * 2), np.full((2, 1), 45.0), np.zeros((2, 1))), ((6, 8), (9,), (8,))
    )
    found = statistics.paired_difference(a, b)  # training seed 2, environment seed 8; training seed 1 shares no episode
    assert (found.estimate.value, found.seeds) == (52.0 - 40.0, 1)
    with pytest.raises(ConfigError, match=r"\[0, 1, 2\] and \[4\]"):
        statistics.paired_difference(a, Scores((4,), ("x", "y"), (np.zeros((2, 1)),), ((7,),)))
    with pytest.raises(ConfigError, match="same tasks"):
        statistics.paired_difference(a, b.of(["x"]))


def test_equal_methods_are_undecided() -> None:
    same = cells(np.random.default_rng(0).uniform(size=(6, 3)))
    found = statistics.paired_difference(same, same)
    assert (found.estimate.value, found.p_value, found.verdict) == (0.0, 1.0, "undecided")
    one = same.of(["task0"])
    few = Scores((0,), one.tasks, one.episodes[:1], one.env_seeds[:1])
    assert statistics.paired_difference(few, few).p_value == 1.0
    assert statistics.improvement(same, same).value == 0.5


def test_false_claims_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(13)
    wrong = 0
    for _ in range(1_000):
        a, b = (3 * rng.normal(size=(5, 1)) + 5 * rng.normal(size=(5, 4)) for _ in range(2))
        wrong += statistics.paired_difference(cells(a), cells(b)).verdict != "undecided"
    assert 0.03 <= wrong / 1_000 <= 0.07


# --- from cells --------------------------------------------------------------------------------------------------------------


def result(seed: int, score: float, n: int = 2, **changes: Any) -> CellResult:
    rows = [episode(task, 5 + i, score + i) for task in TASKS[1:] for i in reversed(range(n))]
    return CellResult(cell("ours", seed, tasks=TASKS[1:], **changes), facts(), {"1.00": rows})


def test_scores_come_from_the_final_episodes_by_seed() -> None:
    found = statistics.scores_of([result(3, 20.0), result(1, 10.0)])
    assert (found.seeds, found.tasks, found.env_seeds) == ((1, 3), TASKS[1:], ((5, 6), (5, 6)))
    np.testing.assert_allclose(found.episodes[0], [[10.0, 11.0]] * 3)
    np.testing.assert_allclose(found.cells, [[10.5] * 3, [20.5] * 3])
    np.testing.assert_allclose(found.of(TASKS[2:3]).cells, [[10.5], [20.5]])


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one cell for each training seed; got cells with the seeds \[\]"):
        statistics.scores_of([])
    with pytest.raises(ConfigError, match=r"with the seeds \[1, 1\]"):
        statistics.scores_of([result(1, 10.0), result(1, 20.0)])
    with pytest.raises(ConfigError, match="no final episodes"):
        statistics.scores_of([CellResult(cell("ours"), None, {})])
    other = CellResult(cell("ours", 2, tasks=TASKS[:1]), facts(), {"1.00": [episode(TASKS[0], 5, 100)]})
    with pytest.raises(ConfigError, match="has other tasks"):
        statistics.scores_of([result(1, 10.0), other])
