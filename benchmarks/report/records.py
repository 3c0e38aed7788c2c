"""What a report consists of: tables of rows and contrasts.

Report ── Table: an experiment on one task set, its seed, a data condition and a scale
            ├── Row: one method, or one setting of it where the experiment varies some
            └── Contrast: row against row, with what it may claim
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m3dt_agent import tasks as task_table
from m3dt_agent.scores import Interval

from .statistics import CONFIDENCE, Difference, Estimate, Scores

QUARTER = "0.75"
"""The fraction of the training at which its last quarter begins."""
UNDERTRAINED = 1.0
"""Points. If a baseline improves by more in its last quarter of training, nothing is claimed against it."""
PARTS: Mapping[str, tuple[str, ...]] = {
    **{domain: (domain,) for domain in task_table.DOMAINS},
    "MW+DMC": ("metaworld", "dmcontrol"),
    "Ant+Cheetah": ("ant-dir", "cheetah-vel"),
}
"""Part of the mean score → the domains it is the mean of."""
OWN_PART = "own tasks"
"""The part of the mean score that tasks outside the 160 have; a table has it only if there are any."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was planned before an experiment ran: its cells (None: not known) and the two methods of its named contrast."""

    cell_ids: frozenset[str] | None = None
    contrast: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One method's mean score on one task, with the ends of its 95% interval.

    Under few seeds, the interval of a success rate is Wilson's; every other one is resampled from episodes or
    seeds, see `statistics.estimate`.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One method of a table.

    scores: those from 0 to 100; a task that is scored by its return is in `by_task` alone.
    parts: part of the mean score → estimate, see `PARTS`. success: rate over all episodes of these models, with Wilson's
    interval. parameters … action_flop: means over the cells. data: fingerprints of the training data. gain: points won in the
    last quarter of the training (None: not known, or no training). curves: (windows, loss) for each training seed. conflict:
    kind of module → gradient conflict, a mean over the cells; empty if it was not measured.
    """

    label: str
    method: str
    cell_ids: tuple[str, ...]
    scores: Scores
    mean: Estimate
    iqm: Estimate
    parts: Mapping[str, Estimate]
    success: tuple[float, Interval] | None
    by_task: Mapping[str, TaskScore]
    parameters: float
    active_parameters: float
    windows: float
    training_flop: float
    action_flop: float
    task_id: str
    data: frozenset[str]
    episodes: int
    gain: float | None
    curves: tuple[Sequence[tuple[int, float]], ...]
    conflict: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Row `a` against row `b`. p_value: corrected by Holm among the table's named contrasts, or among all its others."""

    a: str
    b: str
    named: bool
    difference: Difference
    improvement: Estimate
    p_value: float
    undertrained: bool
    same_data: bool
    smoke: bool

    @property
    def verdict(self) -> str:
        """Whether `a` is better, worse or undecided, or why nothing is claimed."""
        if not self.same_data:
            return "not comparable: different data"
        if self.undertrained:
            return "claim not tested: undertrained"
        found = self.difference.verdict if self.p_value < 1 - CONFIDENCE else "undecided"
        return f"{found} (not evidence)" if self.smoke else found


@dataclass(frozen=True, slots=True)
class Table:
    """One experiment on one set of tasks. task_set_seeds: several if all of them draw these tasks. notes: errors first."""

    experiment: str
    task_set: str
    task_set_seeds: tuple[int, ...]
    condition: str
    scale: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """As a heading."""
        seeds = ", ".join(map(str, self.task_set_seeds))
        return f"{self.experiment}: {self.task_set}, drawn with seed {seeds}, {self.condition} data, scale {self.scale}"


@dataclass(frozen=True, slots=True)
class OverviewScore:
    """A method's mean score on a task set: the mean over its runs, the lowest, the highest, and the number of runs."""

    mean: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Overview:
    """An experiment over all its tables. task_sets: by size. rows: label → a score per task set, None without a run."""

    experiment: str
    condition: str
    scale: str
    task_sets: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: Mapping[str, tuple[OverviewScore | None, ...]]

    @property
    def title(self) -> str:
        """As a heading."""
        return f"{self.experiment}: all task sets, {self.condition} data, scale {self.scale}"

    @property
    def note(self) -> str:
        """What the numbers are, and whether they are evidence."""
        smoke = "Smoke scale: not evidence. " if self.scale == "smoke" else ""
        return f"{smoke}Mean over runs (lowest to highest; number of runs); intervals are in the tables of the task sets."

    def lost(self, label: str) -> float | None:
        """By how many percent a method's score falls from the first task set to the last; None if either is not known."""
        first, last = self.rows[label][0], self.rows[label][-1]
        if first is None or last is None or len(self.task_sets) < 2 or first.mean == 0:
            return None
        return 100 * (1 - last.mean / first.mean)


@dataclass(frozen=True, slots=True)
class Report:
    """All tables of the runs, the overviews of experiments with several tables, and in `also` the names of experiments without
    a table of their own whose cells are all here."""

    tables: tuple[Table, ...]
    overviews: tuple[Overview, ...]
    also: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """A report's tables and overviews by file name, and for each file name the names of its figures."""

    tables: Mapping[str, Table]
    overviews: Mapping[str, Overview]
    figures: Mapping[str, Sequence[str]]
    also: tuple[str, ...]

    @property
    def also_here(self) -> str | None:
        """A sentence that names the experiments of `also`; None if there are none."""
        return f"All cells of these experiments are here too, under other names: {', '.join(self.also)}." if self.also else None
