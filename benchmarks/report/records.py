"""What a report is made of: tables of rows and contrasts.

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
"""The fraction of the training before whose end the last quarter begins."""
UNDERTRAINED = 1.0
"""Points that a baseline may improve by in its last quarter before nothing is claimed against it."""
PARTS: Mapping[str, tuple[str, ...]] = {
    **{domain: (domain,) for domain in task_table.DOMAINS},
    "MW+DMC": ("metaworld", "dmcontrol"),
    "Ant+Cheetah": ("ant-dir", "cheetah-vel"),
}
"""What the mean score is split into: part → domains."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment was to be, before it ran. cell_ids: None where that is not known. contrast: two methods."""

    cell_ids: frozenset[str] | None = None
    contrast: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One method on one task. interval: Wilson's where it is a success rate, over all episodes; else over episodes or seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One method of a table.

    parts: of the mean score, see `PARTS`. success: rate and Wilson's interval over all episodes, of these models. Costs are
    means over the cells. data: fingerprints of what it was trained on. gain: points won in the last quarter of the training
    (None: not known, or no training). curves: per training seed (windows, loss). conflict: module → gradient conflict, the mean
    over the cells; empty where it was not measured.
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
    """Row `a` against row `b`. p_value: Holm's, within its family: the named contrasts of the table, or all the others."""

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
        """What it says of `a`: better, worse or undecided, or why it says nothing."""
        if not self.same_data:
            return "not comparable: different data"
        if self.undertrained:
            return "claim not tested: undertrained"
        found = self.difference.verdict if self.p_value < 1 - CONFIDENCE else "undecided"
        return f"{found} (not evidence)" if self.smoke else found


@dataclass(frozen=True, slots=True)
class Table:
    """One experiment on one set of tasks. task_set_seeds: several where they draw the same tasks. notes: errors come first."""

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
    """Mean over runs of a method's mean scores on a task set, the lowest and the highest of them, and how many there are."""

    mean: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Overview:
    """An experiment over its tables. task_sets: by size. rows: label → a score per task set, None where it has no run."""

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
        """Percent of its score on the first set that a method has not got on the last."""
        first, last = self.rows[label][0], self.rows[label][-1]
        if first is None or last is None or len(self.task_sets) < 2 or first.mean == 0:
            return None
        return 100 * (1 - last.mean / first.mean)


@dataclass(frozen=True, slots=True)
class Report:
    """All tables of the runs. overviews: of experiments with several tables. also: others, all of whose cells are here."""

    tables: tuple[Table, ...]
    overviews: tuple[Overview, ...]
    also: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """A report with names: of its tables and overviews, as in file names, and under them the names of their figures."""

    tables: Mapping[str, Table]
    overviews: Mapping[str, Overview]
    figures: Mapping[str, Sequence[str]]
    also: tuple[str, ...]

    @property
    def also_here(self) -> str | None:
        """A sentence on experiments that are here under other names."""
        return f"All cells of these experiments are here too, under other names: {', '.join(self.also)}." if self.also else None
