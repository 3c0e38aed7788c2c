"""Scores and intervals, computed from the rows of episodes. The folder `evaluation` plays the episodes.

    rows  ──►  score matrix (R runs, M tasks): a cell is the mean normalized score of one run's episodes of one task
               run: one trained model; rows with the same policy name and different bank hashes are different training seeds

Point estimates, after rliable (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice"):

    mean   mean of all R·M cells: every task and every run has the same weight
    IQM    interquartile mean: the mean of the cells without the lowest and the highest ⌊0.25·R·M⌋

A task of one's own that is scored by its return has no cells: returns are not on the scale from 0 to 100, so neither mean
counts them.

Intervals are percentile-bootstrap intervals. With several runs, whole runs are resampled: the cells of one run come from the
same model, so they are not independent. With one run, the episodes of each task are resampled, and the interval says nothing
about other training seeds. A success rate has a Wilson score interval (Wilson 1927):

    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n),  z the normal quantile of the confidence
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, InvalidValueError
from ..tasks import ScoreRule
from .rows import EpisodeResult

Floats = npt.NDArray[np.float64]
"""An array of float64."""
Interval = tuple[float, float]
"""The lower and the upper end."""

AGENT_POLICIES = {"none": "m3dt-backbone", "mixture": "m3dt-mixture", "routed": "m3dt-routed"}
"""What rows call an agent, by the experts that act: none, all weighed by the router, or the heaviest of them."""
EXPERT_POLICY = "m3dt-expert-{}"
"""What rows call an agent whose expert of this index acts alone."""


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task's episodes, over all runs. rule: how they are scored."""

    task: str
    episodes: int
    mean_return: float
    return_interval: Interval
    mean_score: float
    score_interval: Interval
    success_rate: float | None
    success_interval: Interval | None
    mean_length: float
    rule: ScoreRule

    @property
    def on_scale(self) -> bool:
        """Whether the score goes from 0 to 100, and is not the return itself."""
        return self.rule != "return"


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy over its tasks.

    mean_score, iqm_score: over the tasks whose scores go from 0 to 100; not a number (NaN) if there are none. success_rate: the
    mean over the tasks that have one, each task with the same weight.
    """

    policy: str
    runs: int
    episodes: int
    tasks: Mapping[str, TaskSummary]
    mean_score: float
    mean_interval: Interval
    iqm_score: float
    iqm_interval: Interval
    success_rate: float | None


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success rate, in [0, 1].

    Raises:
        InvalidValueError: no trials, more successes than trials, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= n or n == 0:
        raise InvalidValueError(f"successes must be in 0 … n with n >= 1; got {successes} of {n}")
    z = statistics.NormalDist().inv_cdf(0.5 + _checked_confidence(confidence) / 2)
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def interquartile_mean(scores: npt.ArrayLike, axis: int | None = None) -> Any:
    """The mean of the n values along `axis` (None: all) without the lowest and the highest ⌊0.25·n⌋; rliable's `aggregate_iqm`.

    Raises:
        InvalidValueError: no values.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = np.sort(values.reshape(-1) if axis is None else values, axis=-1 if axis is None else axis)
    axis = -1 if axis is None else axis
    n = values.shape[axis]
    if n == 0:
        raise InvalidValueError("the interquartile mean of no values does not exist")
    cut = int(0.25 * n)
    return np.take(values, range(cut, n - cut), axis=axis).mean(axis=axis)


def summarize(rows: Iterable[EpisodeResult], *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Summary:
    """Computes the scores of one policy, per task and overall, with intervals.

    Args:
        rows: episodes of one policy; rows of different banks are different training runs of it.
        confidence: of every interval. resamples: bootstrap draws. seed: of those draws.

    Raises:
        ConfigError: no rows, rows of several policies, an episode twice, runs that do not cover the same tasks, or one task's
            episodes scored by different rules.
    """
    by_run = _group_runs(list(rows))
    policy, names = by_run[0][0].policy, list(dict.fromkeys(row.task for row in by_run[0]))
    by_task = {name: [[row for row in run if row.task == name] for run in by_run] for name in names}
    rng = np.random.default_rng(seed)
    summaries = {name: _summarize_task(name, runs, confidence, resamples, rng) for name, runs in by_task.items()}
    scored = [[_scores(run) for run in runs] for name, runs in by_task.items() if summaries[name].on_scale]
    rates = [summary.success_rate for summary in summaries.values() if summary.success_rate is not None]
    mean, iqm = _over_tasks(scored, confidence, resamples, rng)
    return Summary(
        policy=policy,
        runs=len(by_run),
        episodes=sum(len(run) for run in by_run),
        tasks=summaries,
        mean_score=mean[0],
        mean_interval=mean[1],
        iqm_score=iqm[0],
        iqm_interval=iqm[1],
        success_rate=float(np.mean(rates)) if rates else None,
    )


def _over_tasks(
    tasks: Sequence[Sequence[Floats]], confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[tuple[float, Interval], tuple[float, Interval]]:
    """The mean and the IQM with their intervals. tasks: for each of them the scores of the episodes of each run."""
    if not tasks:
        return ((math.nan, (math.nan, math.nan)),) * 2
    cells = np.array([[np.mean(runs[r]) for runs in tasks] for r in range(len(tasks[0]))])  # (R, M)
    draws = _resampled_cells(cells, [runs[0] for runs in tasks], resamples, rng)  # (S, R·M)
    return (
        (float(cells.mean()), _percentiles(draws.mean(axis=1), confidence)),
        (float(interquartile_mean(cells)), _percentiles(interquartile_mean(draws, axis=1), confidence)),
    )


def _group_runs(rows: Sequence[EpisodeResult]) -> list[list[EpisodeResult]]:
    if len(policies := sorted({row.policy for row in rows})) != 1:
        raise ConfigError(f"summarize needs the rows of one policy; got {', '.join(policies) or 'no rows'}")
    if len({(row.bank_hash, row.task, row.seed) for row in rows}) != len(rows):
        raise ConfigError("an episode (bank, task, seed) occurs more than once; summarize each evaluation by itself")
    runs: dict[str, list[EpisodeResult]] = {}
    for row in rows:
        runs.setdefault(row.bank_hash, []).append(row)
    covered = {row.task for row in rows}
    for bank_hash, run in runs.items():
        if missing := sorted(covered - {row.task for row in run}):
            raise ConfigError(f"run {bank_hash or '(no bank)'} has no episode of {', '.join(missing)}")
    return list(runs.values())


def _scores(rows: Sequence[EpisodeResult]) -> Floats:
    return np.array([row.normalized_score for row in rows])


def _summarize_task(
    name: str, runs: Sequence[Sequence[EpisodeResult]], confidence: float, resamples: int, rng: np.random.Generator
) -> TaskSummary:
    rows = [row for run in runs for row in run]
    if any(row.rule != rows[0].rule for row in rows):
        raise ConfigError(f"episodes of task {name!r} are scored by different rules; summarize each rule's alone")
    successes = [row.success for row in rows if row.success is not None]
    returns = [np.array([row.episode_return for row in run]) for run in runs]
    scores = [_scores(run) for run in runs]
    return TaskSummary(
        task=name,
        episodes=len(rows),
        mean_return=float(np.mean([values.mean() for values in returns])),
        return_interval=_interval_over_runs(returns, confidence, resamples, rng),
        mean_score=float(np.mean([values.mean() for values in scores])),
        score_interval=_interval_over_runs(scores, confidence, resamples, rng),
        success_rate=sum(successes) / len(successes) if successes else None,
        success_interval=wilson_interval(sum(successes), len(successes), confidence) if successes else None,
        mean_length=float(np.mean([row.length for row in rows])),
        rule=rows[0].rule,
    )


def _interval_over_runs(runs: Sequence[Floats], confidence: float, resamples: int, rng: np.random.Generator) -> Interval:
    """The interval of the mean over runs of their means. Resamples runs if there are several, else episodes."""
    values = runs[0] if len(runs) == 1 else np.array([run.mean() for run in runs])
    return _percentiles(_resampled_means(values, resamples, rng), confidence)


def _resampled_means(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """(S,) means of `values` (n,) drawn with replacement."""
    return np.asarray(values[rng.integers(values.size, size=(resamples, values.size))].mean(axis=1))


def _resampled_cells(cells: Floats, episodes: Sequence[Floats], resamples: int, rng: np.random.Generator) -> Floats:
    """(S, R·M) resampled score matrices: whole rows of `cells` (R, M), or with one run each task's `episodes`."""
    if len(cells) == 1:
        return np.stack([_resampled_means(scores, resamples, rng) for scores in episodes], axis=1)
    rows = rng.integers(len(cells), size=(resamples, len(cells)))
    return np.asarray(cells[rows].reshape(resamples, -1))


def _percentiles(draws: Floats, confidence: float) -> Interval:
    tail = 50.0 * (1.0 - _checked_confidence(confidence))
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return float(low), float(high)


def _checked_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise InvalidValueError(f"confidence must be in (0, 1); got {confidence!r}")
    return confidence
