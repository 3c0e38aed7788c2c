"""Rows and statistics, against scipy as an independent oracle, and by simulation."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from m3dt_agent.errors import ConfigError, DatasetError, DiskSpaceError, InvalidValueError
from m3dt_agent.scores import (
    EpisodeResult,
    interquartile_mean,
    read_rows,
    summarize,
    wilson_interval,
    write_rows,
)
from m3dt_agent.tasks import get


def row(task: str = "walker-run", seed: int = 0, episode_return: float = 500.0, **changes: Any) -> EpisodeResult:
    """A row that a rollout could have written."""
    metaworld = get(task).domain == "metaworld"
    fields: dict[str, Any] = {
        "length": 500,
        "success": False if metaworld else None,
        "policy": "test",
        "bank_hash": "",
        "reward_version": "v2" if metaworld else None,
        "stop_on_success": False,
        "versions": {"gymnasium": "1.0"},
    }
    return EpisodeResult(task=task, seed=seed, episode_return=episode_return, **(fields | changes))


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


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(seed=s, episode_return=0.1 + s / 3) for s in range(3)] + [row("reach", 2**32 - 1, -1e-9, success=True)]
    path = write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert read_rows(path) == rows
    assert [json.loads(line)["normalized_score"] for line in path.read_text().splitlines()][-1] == 100.0
    assert os.listdir(path.parent) == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "no-such-task"}, "no-such-task"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"episode_return": float("nan")}, "episode_return must be a finite number"),
        ({"length": 0}, "length must be"),
        ({"success": 1}, "success must be"),
        ({"policy": ""}, "policy must be"),
        ({"versions": {"a": 1}}, "versions must be"),
        ({"normalized_score": 51.0}, "give 50.0"),
        ({"extra": 1}, "unknown field extra"),
        ({"task": "reach"}, "scored by success"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row(), row(seed=1)])
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps(json.loads(second) | change) + "\n")
    with pytest.raises(DatasetError, match=f"line 2: .*{message}"):
        read_rows(path)


def test_truncated_and_incomplete_rows_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row(), row(seed=1)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DatasetError, match="line 2"):
        read_rows(path)
    path.write_text('{"task": "reach"}\n')
    with pytest.raises(DatasetError, match="line 1: missing bank_hash, episode_return"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DatasetError, match="line 1: expected an object"):
        read_rows(path)


def test_a_failed_write_leaves_the_old_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row()])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(path, [row(), dataclasses.replace(row(), episode_return=float("inf"))])
    assert read_rows(path) == [row()]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_full_disk_is_a_named_error_and_leaves_the_old_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row()])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskSpaceError, match=r"rows\.jsonl"):
            write_rows(path, [row(seed=seed) for seed in range(100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_rows(path) == [row()]
    assert os.listdir(tmp_path) == ["rows.jsonl"]
