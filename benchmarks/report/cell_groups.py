"""Which cells of an experiment belong in one table, and the overview over an experiment's tables.

    cells of an experiment ──► one table for each combination of tasks, data condition and scale
    tables                 ──► overview: methods × task sets, for experiments with several tables

Task-set seeds that draw the same tasks (those of mt160) share one table, because there they act as training seeds only. Models
of single tasks (sets `only-<task>`) share one table too: together they are a method with one model per task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from ..records import Cell, CellResult
from .records import Overview, OverviewScore, Table

SINGLE = "single tasks"
"""Name of the task set of a table that joins models of single tasks."""


def cells_by_table(results: Sequence[CellResult]) -> list[list[CellResult]]:
    """The finished cells of one experiment, a list for each table; tables with the fewest tasks come first."""
    groups: dict[tuple[str, ...], list[CellResult]] = {}
    for result in _merged(results):
        cell = result.cell
        groups.setdefault((cell.scale, cell.condition, cell.task_set, *sorted(cell.tasks)), []).append(result)
    found = [part for group in groups.values() for part in (_by_seed(group) if _has_twins(group) else [group])]
    return sorted(found, key=lambda group: _order(group[0].cell))


def overviews_of(tables: Sequence[Table]) -> Iterator[Overview]:
    """An overview for every experiment, condition and scale that has several tables."""
    for key, members in itertools.groupby(sorted(tables, key=_overview_key), key=_overview_key):
        group = list(members)
        if len(group) < 2:
            continue
        sizes = {table.task_set: len(table.tasks) for table in group}
        sets = sorted(sizes, key=lambda name: (sizes[name], name))
        labels = sorted({row.label for table in group for row in table.rows})
        rows = {label: tuple(_overview_score(group, label, name) for name in sets) for label in labels}
        yield Overview(*key, tuple(sets), tuple(sizes[name] for name in sets), rows)


def _order(cell: Cell) -> tuple[object, ...]:
    return len(cell.tasks), cell.task_set, cell.condition, cell.scale, cell.task_set_seed, sorted(cell.tasks)


def _overview_key(table: Table) -> tuple[str, str, str]:
    return table.experiment, table.condition, table.scale


def _overview_score(tables: Sequence[Table], label: str, task_set: str) -> OverviewScore | None:
    rows = [row for table in tables if table.task_set == task_set for row in table.rows if row.label == label]
    means = [float(run.mean()) for row in rows for run in row.scores.cells]
    if not means:
        return None
    return OverviewScore(round(float(np.mean(means)), 4), round(min(means), 4), round(max(means), 4), len(means))


def _has_twins(results: Sequence[CellResult]) -> bool:
    """Whether two cells differ only in their task-set seed, so that task-set seeds are crossed with training seeds."""
    keys = [_model_key(result.cell) for result in results]
    return len(set(keys)) < len(keys)


def _by_seed(results: Sequence[CellResult]) -> list[list[CellResult]]:
    seeds = sorted({result.cell.task_set_seed for result in results})
    return [[result for result in results if result.cell.task_set_seed == seed] for seed in seeds]


def _model_key(cell: Cell) -> tuple[object, ...]:
    return cell.method, json.dumps(dict(cell.settings), sort_keys=True), cell.training_seed, cell.condition, cell.scale


def _merged(results: Sequence[CellResult]) -> list[CellResult]:
    """The cells; those of single tasks that agree in method, settings and seeds are joined into one."""
    single: dict[tuple[object, ...], list[CellResult]] = {}
    for result in results:
        if len(result.cell.tasks) == 1:
            single.setdefault((*_model_key(result.cell), result.cell.task_set_seed), []).append(result)
    several = [result for result in results if len(result.cell.tasks) > 1]
    return several + [_joined(cells) if len(cells) > 1 else cells[0] for cells in single.values()]


def _joined(results: Sequence[CellResult]) -> CellResult:
    """One cell for several models of single tasks. Training costs are added up, learning curves are left out."""
    first, facts = results[0], [result.facts for result in results if result.facts is not None]
    prints = sorted(str(fact.data["fingerprint"]) for fact in facts if "fingerprint" in fact.data)
    together = dataclasses.replace(
        facts[0],
        windows=sum(fact.windows for fact in facts),
        training_flop=sum(fact.training_flop for fact in facts),
        seconds=sum(fact.seconds for fact in facts),
        data={"fingerprint": hashlib.sha256("".join(prints).encode()).hexdigest()} if prints else {},
        curve=[],
    )
    tasks = tuple(sorted(result.cell.tasks[0] for result in results))
    fractions = set.intersection(*(set(result.episodes) for result in results))
    episodes = {at: [row for result in results for row in result.episodes[at]] for at in fractions}
    return CellResult(dataclasses.replace(first.cell, task_set=SINGLE, tasks=tasks), together, episodes)
