"""Builds a report's tables from the cells of runs: rows, contrasts and notes, not yet formatted.

    cells ──► experiments (what was planned) ──► Table: one task set, its seed, data condition, scale
                                                   Row: one method, or one setting of it where the experiment varies some
                                                   Contrast: row against row, with what it may claim

A contrast claims nothing if its baseline was still improving in the last quarter of its training, if its methods were trained
on different data, or at smoke scale, which is no evidence. With few seeds it is conditional on the trained models, see
`statistics`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from m3dt_agent import tasks as task_table
from m3dt_agent.errors import ConfigError
from m3dt_agent.scores import Interval, wilson_interval

from ..records import FINAL, Cell, CellResult, read_run
from . import statistics
from .caveats import caveats, protocol_errors
from .cell_groups import cells_by_table, overviews_of
from .records import OWN_PART, PARTS, QUARTER, UNDERTRAINED, Contrast, Plan, Report, Row, Table, TaskScore
from .significance import holm
from .statistics import Scores


def build_report(runs: Sequence[Path], plans: Mapping[tuple[str, str], Plan] | None = None) -> Report:
    """Computes all tables and overviews of some run folders.

    Args:
        plans: (experiment, scale) → what was planned. None: the plans of `experiments`.

    Raises:
        DatasetError: there are no cells, or one is damaged.
        ConfigError: no cell is finished.
    """
    results = read_run(*runs)
    plans = _experiment_plans(results) if plans is None else plans
    if not any(result.finished for result in results):
        raise ConfigError(f"none of the {len(results)} cells is finished; run `python -m benchmarks run …` again to go on")
    tables, named = [], sorted({(result.cell.experiment, result.cell.scale) for result in results})
    for experiment, scale in named:
        plan = plans.get((experiment, scale), Plan())
        own = [result for result in results if _belongs(result.cell, experiment, scale, plan)]
        done = [result for result in own if result.finished]
        missing = len({result.cell.id for result in own} | (plan.cell_ids or frozenset())) - len(done)
        tables += [_table(experiment, group, plan, missing) for group in cells_by_table(done)]
    ids = {result.cell.id for result in results if result.finished}
    also = [f"{name} ({scale})" for (name, scale), plan in sorted(plans.items()) if plan.cell_ids and plan.cell_ids <= ids]
    also = [shown for shown in also if shown not in {f"{name} ({scale})" for name, scale in named}]
    return Report(tuple(tables), tuple(overviews_of(tables)), tuple(also))


def _experiment_plans(results: Sequence[CellResult]) -> dict[tuple[str, str], Plan]:
    """The plans of all experiments at the scales that the results have."""
    from ..experiments import EXPERIMENTS, cells

    scales = sorted({result.cell.scale for result in results})
    return {
        (name, scale): Plan(frozenset(cell.id for cell in cells(name, scale)), experiment.contrast)
        for name, experiment in EXPERIMENTS.items()
        for scale in scales
    }


def _belongs(cell: Cell, experiment: str, scale: str, plan: Plan) -> bool:
    """Whether a cell is one of an experiment's. A cell that several experiments share names only one of them."""
    return (cell.experiment, cell.scale) == (experiment, scale) or (plan.cell_ids is not None and cell.id in plan.cell_ids)


def _table(experiment: str, results: Sequence[CellResult], plan: Plan, missing: int) -> Table:
    cell = results[0].cell
    tasks = tuple(task.name for task in task_table.known() if task.name in cell.tasks)
    rows = tuple(_row(label, cells, tasks) for label, cells in _labelled(results).items())
    contrasts = _contrasts(rows, plan.contrast, cell.scale == "smoke")
    seeds = tuple(sorted({result.cell.task_set_seed for result in results}))
    table = Table(
        experiment=experiment,
        task_set=cell.task_set,
        task_set_seeds=seeds,
        condition=cell.condition,
        scale=cell.scale,
        tasks=tasks,
        rows=rows,
        contrasts=contrasts,
        notes=tuple(protocol_errors(results)),
    )
    return dataclasses.replace(table, notes=(*table.notes, *caveats(table, plan, missing)))


def _labelled(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Row label → cells. The label is the method, with those settings that differ among its cells."""
    labels: dict[str, list[CellResult]] = {}
    for method in sorted({result.cell.method for result in results}):
        own = [result for result in results if result.cell.method == method]
        keys = sorted({key for result in own for key in result.cell.settings})
        varied = [key for key in keys if len({json.dumps(result.cell.settings.get(key)) for result in own}) > 1]
        for result in sorted(own, key=lambda result: [_sortable(result.cell.settings.get(key)) for key in varied]):
            values = ", ".join(f"{key}={result.cell.settings.get(key)}" for key in varied)
            labels.setdefault(f"{method} ({values})" if varied else method, []).append(result)
    return labels


def _sortable(value: object) -> tuple[bool, float, str]:
    return (True, float(value), "") if isinstance(value, int | float) else (False, 0.0, str(value))


def _row(label: str, results: Sequence[CellResult], tasks: Sequence[str]) -> Row:
    everything = statistics.scores_of(results)
    specs = {name: task_table.get(name) for name in tasks}
    scored = [name for name in tasks if specs[name].score != "return"]  # returns are not on the scale of the others
    if not scored:
        raise ConfigError(f"a table needs a task with scores from 0 to 100; {', '.join(tasks)} are scored by their return")
    scores = everything.of(scored)
    facts = [result.facts for result in results if result.facts is not None]
    parts = {part: [name for name in scored if specs[name].domain in among] for part, among in PARTS.items()}
    parts[OWN_PART] = [name for name in scored if specs[name].domain not in task_table.DOMAINS]

    def cost(name: str) -> float:
        return float(np.mean([getattr(fact, name) for fact in facts]))

    return Row(
        label=label,
        method=results[0].cell.method,
        cell_ids=tuple(result.cell.id for result in results),
        scores=scores,
        mean=statistics.estimate(scores),
        iqm=statistics.estimate(scores, statistics.iqm),
        parts={part: statistics.estimate(scores.of(names)) for part, names in parts.items() if names},
        success=_success([row.success for result in results for row in result.final]),
        by_task={name: _task_score(everything, name, results) for name in tasks},
        parameters=cost("parameters"),
        active_parameters=cost("active_parameters"),
        windows=cost("windows"),
        training_flop=cost("training_flop"),
        action_flop=cost("action_flop"),
        task_id=", ".join(sorted({fact.task_id for fact in facts})),
        data=frozenset(str(fact.data["fingerprint"]) for fact in facts if "fingerprint" in fact.data),
        episodes=sum(len(result.final) for result in results),
        gain=_gain(results, scored),
        curves=tuple(fact.curve for fact in facts),
        conflict=_mean_conflict([fact.conflict for fact in facts if fact.conflict]),
    )


def _success(found: Sequence[bool | None]) -> tuple[float, Interval] | None:
    known = [success for success in found if success is not None]
    return (sum(known) / len(known), wilson_interval(sum(known), len(known))) if known else None


def _task_score(scores: Scores, name: str, results: Sequence[CellResult]) -> TaskScore:
    own = scores.of([name])
    found = statistics.estimate(own)
    success = _success([row.success for result in results for row in result.final if row.task == name])
    if task_table.get(name).score == "success" and success is not None and own.conditional:
        return TaskScore(found.value, 100 * success[1][0], 100 * success[1][1])
    return TaskScore(found.value, found.low, found.high)


def _mean_conflict(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    modules = found[0] if found else {}
    return {module: sum(one[module] for one in found) / len(found) for module in modules}


def _gain(results: Sequence[CellResult], tasks: Sequence[str]) -> float | None:
    """Points won in the last quarter of the training, a mean over the cells that were evaluated there; None if none was."""
    gains = []
    for result in results:
        if result.episodes.get(QUARTER):
            before, after = (statistics.episode_matrix(result, at, tasks)[0].mean() for at in (QUARTER, FINAL))
            gains.append(after - before)
    return float(np.mean(gains)) if gains else None


def pairs(rows: Sequence[Row], a: str, b: str) -> list[tuple[Row, Row]]:
    """Every row with label or method `a`, with every row with label or method `b`."""
    first, second = ([row for row in rows if name in (row.label, row.method)] for name in (a, b))
    return [(x, y) for x in first for y in second if x is not y]


def _contrasts(rows: Sequence[Row], named: tuple[str, str] | None, smoke: bool) -> tuple[Contrast, ...]:
    """First the named contrast (several if its methods have several rows), then its first method against all other rows.

    If the first method is not among the rows, all others stand against the second.
    """
    if named is None:
        return ()
    first = pairs(rows, *named)
    rest = [(x, y) for x in rows if named[0] in (x.label, x.method) for y in rows if x is not y]
    rest = rest or [(x, y) for y in rows if named[1] in (y.label, y.method) for x in rows if x is not y]
    rest = [pair for pair in rest if pair not in first]
    return (*_family(first, True, smoke), *_family(rest, False, smoke))


def _family(pairs: Sequence[tuple[Row, Row]], named: bool, smoke: bool) -> list[Contrast]:
    """Contrasts of the pairs that share seeds, with p-values corrected by Holm within them."""
    plain = [contrast_of(x, y, named=named, smoke=smoke) for x, y in pairs if statistics.common_seeds(x.scores, y.scores)]
    return [dataclasses.replace(c, p_value=p) for c, p in zip(plain, holm([c.p_value for c in plain]), strict=True)]


def contrast_of(a: Row, b: Row, *, named: bool, smoke: bool) -> Contrast:
    """Row `a` against row `b`, with the p-value not yet corrected."""
    difference = statistics.paired_difference(a.scores, b.scores)
    return Contrast(
        a=a.label,
        b=b.label,
        named=named,
        difference=difference,
        improvement=statistics.improvement(a.scores, b.scores),
        p_value=difference.p_value,
        undertrained=b.gain is not None and b.gain > UNDERTRAINED,
        same_data=not (a.data and b.data) or a.data == b.data,
        smoke=smoke,
    )
