"""What a method scores, with intervals over training seeds, and whether two methods differ.

    CellResult.final, one cell per training seed  ──►  Scores: episodes (R seeds) × (M tasks, N), cells (R, M) their means
    Scores ──► estimate: mean, IQM        Scores × Scores ──► improvement: P(X > Y), paired_difference ──► verdict

Point estimates are rliable's (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice"):

    IQM                          mean without the lowest and the highest ⌊0.25·R·M⌋ of the R·M cells
    probability of improvement   P(X > Y) = 1/M Σₘ U(X·ₘ, Y·ₘ) / (Rx·Ry),  U Mann and Whitney's statistic, ties count ½
    performance profile          F(τ) = share of the R·M cells above τ

Intervals are our own. One training seed is one model over all tasks, so the cells of one seed rise and fall together. rliable's
bootstrap draws each task's runs separately, which averages this away and gives intervals that are too narrow. Here whole seeds
are drawn. Plain percentiles of such draws are still too narrow (with ten seeds they cover about 90%), by a factor of √((R-1)/R)
and because their tails are the normal's instead of Student's. So the percentiles are moved outward to

    Φ(∓√(R/(R-1)) · t),  t Student's quantile with R-1 degrees of freedom         Hesterberg 2015, "expanded percentiles"

If the draws are normal, this is Student's interval; it stays within the range of a score and serves every statistic. With fewer
than `MIN_SEEDS` seeds an interval over training seeds would mean little. Then episodes are drawn within each task (and the
seeds too if there are two or more), and the estimate is marked `conditional`: it holds for these trained models only.

A difference of means over the same seeds and tasks averages many tasks per seed, so it gets Student's own interval over the
seeds' differences. With fewer than `MIN_SEEDS` seeds it gets the bootstrap of differences between episodes with the same
environment seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from m3dt_agent.errors import ConfigError
from m3dt_agent.scores import Floats, Interval, interquartile_mean

from ..records import FINAL, CellResult
from .significance import student_p_value, student_quantile

Ints = npt.NDArray[np.int64]
Statistic = Callable[[Floats], Floats]
"""(…, R, M) score matrices → (…) numbers."""
Verdict = Literal["better", "worse", "undecided"]

MIN_SEEDS = 5
"""With this many training seeds or more, intervals are over training seeds; with four, Student's quantile is already 3.18."""
CONFIDENCE = 0.95
_SEED_RESAMPLES, _EPISODE_RESAMPLES = 10_000, 2_000
_CHUNK_VALUES = 2_000_000


@dataclass(frozen=True, slots=True)
class Scores:
    """One method's normalized scores on some tasks.

    seeds: R training seeds. tasks: M names. episodes: for each training seed, (M, N) scores. env_seeds: for each training seed,
    the environment seeds of the N columns, which are the same for every task.
    """

    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    episodes: tuple[Floats, ...]
    env_seeds: tuple[tuple[int, ...], ...]

    @property
    def cells(self) -> Floats:
        """(R, M) mean scores."""
        return np.array([run.mean(axis=1) for run in self.episodes])

    @property
    def conditional(self) -> bool:
        """Whether there are too few training seeds for an interval over training seeds."""
        return len(self.seeds) < MIN_SEEDS

    def of(self, tasks: Sequence[str]) -> Scores:
        """The scores on some of the tasks."""
        columns = [self.tasks.index(task) for task in tasks]
        return Scores(self.seeds, tuple(tasks), tuple(run[columns] for run in self.episodes), self.env_seeds)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval. conditional: the interval holds for these trained models only."""

    value: float
    low: float
    high: float
    conditional: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One method's mean score minus another's, over the same seeds and tasks. p_value: two-sided, for no difference."""

    estimate: Estimate
    p_value: float
    seeds: int
    tasks: int

    @property
    def verdict(self) -> Verdict:
        """What the 95% interval says of the first method."""
        if self.estimate.low > 0:
            return "better"
        return "worse" if self.estimate.high < 0 else "undecided"


def scores_of(results: Sequence[CellResult]) -> Scores:
    """The score matrix of one method's evaluated cells, one cell per training seed.

    Raises:
        ConfigError: there are no cells, one has no final episodes, two share a training seed, or their tasks differ.
    """
    results = sorted(results, key=lambda result: result.cell.training_seed)
    seeds = tuple(result.cell.training_seed for result in results)
    if not results or len(set(seeds)) != len(seeds):
        raise ConfigError(f"a score matrix needs one cell for each training seed; got cells with the seeds {list(seeds)}")
    tasks = results[0].cell.tasks
    for result in results:
        if not result.final or set(result.cell.tasks) != set(tasks):
            fault = "has other tasks" if result.final else "has no final episodes"
            raise ConfigError(f"cell {result.cell.id} ({result.cell.method}) {fault}")
    matrices = [episode_matrix(result, FINAL, tasks) for result in results]
    return Scores(seeds, tasks, tuple(scores for scores, _ in matrices), tuple(drawn for _, drawn in matrices))


def episode_matrix(result: CellResult, fraction: str, tasks: Sequence[str]) -> tuple[Floats, tuple[int, ...]]:
    """(M, N) normalized scores after a fraction of a cell's training, and the environment seeds of the columns."""
    by_task: dict[str, dict[int, float]] = {task: {} for task in tasks}
    for row in result.episodes[fraction]:
        by_task[row.task][row.seed] = row.normalized_score
    drawn = tuple(sorted(by_task[tasks[0]]))
    return np.array([[by_task[task][seed] for seed in drawn] for task in tasks]), drawn


def mean(cells: Floats) -> Floats:
    """(…, R, M) → (…) mean of the cells."""
    return np.asarray(cells.mean(axis=(-2, -1)))


def iqm(cells: Floats) -> Floats:
    """(…, R, M) → (…) interquartile mean of the cells."""
    return np.asarray(interquartile_mean(cells.reshape(*cells.shape[:-2], -1), axis=-1))


def performance_profile(cells: Floats, thresholds: Floats) -> Floats:
    """(…, R, M) scores, (K,) thresholds → (…, K) share of cells above each threshold, rliable's run-score distribution."""
    return np.stack([(cells > threshold).mean(axis=(-2, -1)) for threshold in thresholds], axis=-1)


def probability_of_improvement(x: Floats, y: Floats) -> Floats:
    """(…, Rx, M), (…, Ry, M) → (…) P(X > Y), averaged over tasks; ties count ½."""
    first, second = x[..., :, None, :], y[..., None, :, :]
    return np.asarray(((first > second) + 0.5 * (first == second)).mean(axis=(-3, -2, -1)))


def estimate(scores: Scores, statistic: Statistic = mean, *, resamples: int | None = None, seed: int = 0) -> Estimate:
    """A statistic of the score matrix with its 95% interval. resamples: bootstrap draws (None: 10,000 seeds or 2,000
    episodes)."""
    draws = np.concatenate([statistic(cells) for cells in _resampled(scores, resamples, np.random.default_rng(seed))])
    return _estimate(float(statistic(scores.cells)), draws, len(scores.seeds))


def profile_band(scores: Scores, thresholds: Floats, *, resamples: int = 2_000, seed: int = 0) -> tuple[Floats, Floats]:
    """(K,) lower and (K,) upper ends of the pointwise 95% intervals of the performance profile."""
    rng = np.random.default_rng(seed)
    draws = np.concatenate([performance_profile(cells, thresholds) for cells in _resampled(scores, resamples, rng)])
    low, high = np.quantile(draws, _tails(len(scores.seeds)), axis=0)
    return np.asarray(low), np.asarray(high)


def improvement(x: Scores, y: Scores, *, resamples: int | None = None, seed: int = 0) -> Estimate:
    """P(X > Y) with its 95% interval. The seeds of the two methods are drawn independently.

    Raises:
        ConfigError: the methods have different tasks.
    """
    if set(x.tasks) != set(y.tasks):
        raise ConfigError("the probability of improvement needs the same tasks for both methods")
    y, rng = y.of(x.tasks), np.random.default_rng(seed)
    if x.conditional or y.conditional:
        resamples = resamples or _EPISODE_RESAMPLES
    size = max(x.cells.size * len(y.seeds), _width(x), _width(y))
    both = zip(_resampled(x, resamples, rng, size=size), _resampled(y, resamples, rng, size=size), strict=True)
    draws = np.concatenate([probability_of_improvement(first, second) for first, second in both])
    value = float(probability_of_improvement(x.cells, y.cells))
    return _estimate(value, draws, min(len(x.seeds), len(y.seeds)))


def paired_difference(a: Scores, b: Scores, *, resamples: int | None = None, seed: int = 0) -> Difference:
    """Mean score of `a` minus that of `b`, over the training seeds and episodes that both have.

    Raises:
        ConfigError: the tasks differ, or no common training seed has episodes with the same environment seeds.
    """
    difference = _paired(a, b)
    seeds, cells = len(difference.seeds), difference.cells
    if difference.conditional:
        draws = np.concatenate([mean(drawn) for drawn in _resampled(difference, resamples, np.random.default_rng(seed))])
        below, above = (draws <= 0).sum(), (draws >= 0).sum()
        p_value = min(1.0, 2.0 * (1 + min(below, above)) / (1 + draws.size))
        return Difference(_estimate(float(mean(cells)), draws, seeds), float(p_value), seeds, len(a.tasks))
    per_seed = cells.mean(axis=1)
    value, error = float(per_seed.mean()), float(per_seed.std(ddof=1)) / math.sqrt(seeds)
    half = error * student_quantile(0.5 + CONFIDENCE / 2, seeds - 1)
    p_value = float(value == 0.0) if error == 0.0 else student_p_value(value / error, seeds - 1)
    return Difference(Estimate(value, value - half, value + half, False), p_value, seeds, len(a.tasks))


def common_seeds(a: Scores, b: Scores) -> tuple[int, ...]:
    """Training seeds that both have and for which some episodes have the same environment seeds."""
    drawn = dict(zip(b.seeds, b.env_seeds, strict=True))
    return tuple(
        seed for seed, own in zip(a.seeds, a.env_seeds, strict=True) if seed in drawn and not set(own).isdisjoint(drawn[seed])
    )


def seed_rows(seeds: int, resamples: int, rng: np.random.Generator) -> Ints:
    """(S, R) indices of training seeds; each of the S draws takes R whole seeds with replacement."""
    return rng.integers(seeds, size=(resamples, seeds))


def interval(draws: npt.ArrayLike, seeds: int) -> Interval:
    """95% interval from (S,) draws of a statistic of `seeds` seeds: expanded percentiles, or plain ones if conditional."""
    low, high = np.quantile(np.asarray(draws), _tails(seeds))
    return float(low), float(high)


def _tails(seeds: int) -> list[float]:
    """The two quantiles of the draws that bound the interval."""
    if seeds < MIN_SEEDS:
        tail = (1.0 - CONFIDENCE) / 2
    else:
        spread = math.sqrt(seeds / (seeds - 1)) * student_quantile(0.5 + CONFIDENCE / 2, seeds - 1)
        tail = statistics.NormalDist().cdf(-spread)
    return [tail, 1.0 - tail]


def _estimate(value: float, draws: Floats, seeds: int) -> Estimate:
    return Estimate(value, *interval(draws, seeds), seeds < MIN_SEEDS)


def _resampled(scores: Scores, resamples: int | None, rng: np.random.Generator, size: int = 0) -> Iterator[Floats]:
    """Resampled score matrices in chunks of shape (s, R, M). size: values per resample that the caller makes of them."""
    cells = scores.cells
    default = _EPISODE_RESAMPLES if scores.conditional else _SEED_RESAMPLES
    rows = seed_rows(len(cells), resamples or default, rng)
    for start in range(0, len(rows), step := max(1, _CHUNK_VALUES // max(size, _width(scores)))):
        chunk = rows[start : start + step]
        yield _episode_resamples(scores, chunk, rng) if scores.conditional else cells[chunk]


def _width(scores: Scores) -> int:
    """How many values one resample consists of."""
    return sum(run.size for run in scores.episodes) if scores.conditional else scores.cells.size


def _episode_resamples(scores: Scores, rows: Ints, rng: np.random.Generator) -> Floats:
    """(s, R, M) means of episodes drawn within each task of the seeds `rows` (s, R)."""
    drawn = np.empty((*rows.shape, len(scores.tasks)))
    for r, run in enumerate(scores.episodes):
        where = rows == r
        columns = rng.integers(run.shape[1], size=(int(where.sum()), *run.shape))
        drawn[where] = np.take_along_axis(run[None], columns, axis=2).mean(axis=2)
    return drawn


def _paired(a: Scores, b: Scores) -> Scores:
    """The differences between episodes with the same training seed, task and environment seed."""
    if set(a.tasks) != set(b.tasks):
        raise ConfigError("a paired difference needs the same tasks for both methods")
    b, seeds = b.of(a.tasks), common_seeds(a, b)
    if not seeds:
        raise ConfigError(
            f"the methods share no training seed with the same episodes; they have {list(a.seeds)} and {list(b.seeds)}"
        )
    episodes, drawn = [], []
    for seed in seeds:
        i, j = a.seeds.index(seed), b.seeds.index(seed)
        common = tuple(sorted(set(a.env_seeds[i]) & set(b.env_seeds[j])))
        first, second = (_columns(scores, k, common) for scores, k in ((a, i), (b, j)))
        episodes.append(first - second)
        drawn.append(common)
    return Scores(seeds, a.tasks, tuple(episodes), tuple(drawn))


def _columns(scores: Scores, run: int, env_seeds: Sequence[int]) -> Any:
    return scores.episodes[run][:, [scores.env_seeds[run].index(seed) for seed in env_seeds]]
