"""Episode rows, and the scores and intervals computed from them. The folder `evaluation` plays the episodes.

    rows  ──►  score matrix (R runs, M tasks): a cell is the mean normalized score of one run's episodes of one task
               run: one trained model; rows with the same policy name and different bank hashes are different training seeds

Point estimates, after rliable (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice"):

    mean   mean of all R·M cells: every task and every run has the same weight
    IQM    interquartile mean: the mean of the cells without the lowest and the highest ⌊0.25·R·M⌋

Intervals are percentile-bootstrap intervals. With several runs, whole runs are resampled: the cells of one run come from the
same model, so they are not independent. With one run, the episodes of each task are resampled, and the interval says nothing
about other training seeds. A success rate has a Wilson score interval (Wilson 1927):

    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n),  z the normal quantile of the confidence
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import tasks
from .disk import write_file
from .errors import ConfigError, DatasetError, InvalidValueError

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

AGENT_POLICIES = {"none": "m3dt-backbone", "mixture": "m3dt-mixture", "routed": "m3dt-routed"}
"""What rows call an agent, by the experts that act: none, all weighed by the router, or the heaviest of them."""
EXPERT_POLICY = "m3dt-expert-{}"
"""What rows call an agent whose expert of this index acts alone."""


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One evaluated episode.

    seed: of the environment's reset. episode_return: undiscounted, summed in float64. success: None if the task has none.
    bank_hash: content hash of the bank that acted; "" for other policies. reward_version: Meta-World's reward function;
    None for other domains. versions: package name → installed version.
    """

    task: str
    seed: int
    episode_return: float
    length: int
    success: bool | None
    policy: str
    bank_hash: str
    reward_version: str | None
    stop_on_success: bool
    versions: Mapping[str, str]

    @property
    def normalized_score(self) -> float:
        """The episode's score from 0 to 100, `TaskSpec.normalized_score`."""
        return tasks.get(self.task).normalized_score(self.episode_return, self.success)


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task's episodes, over all runs."""

    task: str
    episodes: int
    mean_return: float
    return_interval: Interval
    mean_score: float
    score_interval: Interval
    success_rate: float | None
    success_interval: Interval | None
    mean_length: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy over its tasks. success_rate: the mean over the tasks that have one, each task with the same weight."""

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
        ConfigError: no rows, rows of several policies, an episode twice, or runs that do not cover the same tasks.
    """
    by_run = _group_runs(list(rows))
    policy, names = by_run[0][0].policy, list(dict.fromkeys(row.task for row in by_run[0]))
    by_task = {name: [[row for row in run if row.task == name] for run in by_run] for name in names}
    rng = np.random.default_rng(seed)
    summaries = {name: _summarize_task(name, runs, confidence, resamples, rng) for name, runs in by_task.items()}
    cells = np.array([[np.mean(_scores(runs[r])) for runs in by_task.values()] for r in range(len(by_run))])  # (R, M)
    draws = _resampled_cells(cells, [_scores(runs[0]) for runs in by_task.values()], resamples, rng)  # (S, R·M)
    rates = [summary.success_rate for summary in summaries.values() if summary.success_rate is not None]
    return Summary(
        policy=policy,
        runs=len(by_run),
        episodes=sum(len(run) for run in by_run),
        tasks=summaries,
        mean_score=float(cells.mean()),
        mean_interval=_percentiles(draws.mean(axis=1), confidence),
        iqm_score=float(interquartile_mean(cells)),
        iqm_interval=_percentiles(interquartile_mean(draws, axis=1), confidence),
        success_rate=float(np.mean(rates)) if rates else None,
    )


def write_rows(path: str | Path, rows: Iterable[EpisodeResult]) -> Path:
    """Writes the rows to `path`, one JSON object per line, all or none.

    Raises:
        DiskSpaceError: no room; `path` is as before.
    """
    path = Path(path)
    lines = "".join(json.dumps(_to_json(row), sort_keys=True, allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lines)
    return path


def read_rows(path: str | Path) -> list[EpisodeResult]:
    """Reads a file that `write_rows` wrote.

    Raises:
        DatasetError: an unreadable line, missing or unknown fields, a wrong type or value; the message names the line.
    """
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(_from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise DatasetError(f"{path}, line {number}: {error}") from error
    return rows


def _to_json(row: EpisodeResult) -> dict[str, Any]:
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return {**fields, "versions": dict(row.versions), "normalized_score": row.normalized_score}


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task": (lambda v: isinstance(v, str), "a task name"),
    "seed": (lambda v: type(v) is int and 0 <= v < 2**32, "an integer in [0, 2**32)"),
    "episode_return": (lambda v: type(v) in (int, float) and math.isfinite(v), "a finite number"),
    "length": (lambda v: type(v) is int and v >= 1, "an integer >= 1"),
    "success": (lambda v: v is None or type(v) is bool, "true, false or null"),
    "policy": (lambda v: isinstance(v, str) and v != "", "a name"),
    "bank_hash": (lambda v: isinstance(v, str), "a string"),
    "reward_version": (lambda v: v is None or isinstance(v, str), "a string or null"),
    "stop_on_success": (lambda v: type(v) is bool, "true or false"),
    "versions": (
        lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()),
        "an object of strings",
    ),
    "normalized_score": (lambda v: type(v) in (int, float) and math.isfinite(v), "a finite number"),
}


def _from_json(values: Any) -> EpisodeResult:
    if not isinstance(values, dict):
        raise DatasetError(f"expected an object, got {type(values).__name__}")
    if missing := sorted(set(_CHECKS) - set(values)):
        raise DatasetError(f"missing {', '.join(missing)}")
    if unknown := sorted(set(values) - set(_CHECKS)):
        raise DatasetError(f"unknown field {', '.join(unknown)}")
    for field, (valid, description) in _CHECKS.items():
        if not valid(values[field]):
            raise DatasetError(f"{field} must be {description}; got {values[field]!r}")
    stored = values.pop("normalized_score")
    row = EpisodeResult(**values)
    if not math.isclose(row.normalized_score, stored, rel_tol=1e-9, abs_tol=1e-9):
        raise DatasetError(f"normalized_score is {stored!r}, but the row's return and success give {row.normalized_score!r}")
    return row


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
