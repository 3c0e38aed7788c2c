"""The page of a folder with datasets: a table of tasks, and for each its returns, ranges and three of its episodes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import DatasetError, UnknownTaskError
from ..system.machine import shows_progress
from .clips import Clip, bytes_each, clips_of_dataset
from .dataset_stats import DatasetStats, Ranges, find_datasets, read_stats
from .page import COLOURS, Cell, Column, Page, number, percent, shorts

CLIPPED_TASKS = 8
"""Clips are drawn without being asked for if there are at most so many datasets: each takes seconds."""
_BINS = 24
_COLUMNS = (
    Column("task", kind="words"),
    Column("domain", kind="words"),
    Column("source", "the last part of the dataset's name", kind="words"),
    Column("demonstrator", "who acted, as the dataset says", kind="words"),
    Column("episodes"),
    Column("steps"),
    Column("return, min"),
    Column("median"),
    Column("max"),
    Column("returns", "a histogram from the lowest return to the highest"),
    Column("score", "mean normalized score, 0 to 100"),
    Column("success", "share of the episodes that succeed, where the task has a success"),
    Column("length", "shortest to longest, and the median; in steps"),
    Column("clipped", "share of the entries of actions that are at a bound, -1 or 1: clipped, or there of themselves"),
    Column("problems", "what makes an episode or the dataset unusable; m3dt data validate has them all", "text"),
)


def datasets_page(root: Path, shown_as: str, clips: Sequence[str] | None, source: str | None, progress: bool | None) -> Page:
    """The page of the datasets under a Minari root.

    Args:
        shown_as: what commands call the root.
        clips: tasks whose episodes are drawn; None: all, if they are at most `CLIPPED_TASKS`.
        source: only the datasets of this source. progress: whether to show a bar; None: only on a terminal.

    Raises:
        DatasetError: there are no datasets. UnknownTaskError: clips of a task that has none.
        PathError: a folder cannot be read.
    """
    found = [one for one in find_datasets(root) if source in (None, one[1])]
    if not found:
        raise DatasetError(f"there are no datasets{f' of source {source!r}' if source else ''} under {root}")
    if unknown := sorted(set(clips or ()) - {task for task, _, _ in found}):
        raise UnknownTaskError(f"clips of {', '.join(unknown)}: there are no datasets of these tasks under {root}")
    bar = tqdm(found, desc="datasets", unit="dataset", disable=not shows_progress(progress))
    stats = {_key(one, found): read_stats(*one) for one in bar}
    page = Page(f"Datasets under {shown_as}", _lead(list(stats.values())))
    if broken := [key for key, one in stats.items() if one.problems]:
        named = ", ".join(broken[:20]) + " …" * (len(broken) > 20)
        page.note(f"With problems, and without the episodes that have one: {named}.")
    page.table("datasets", _COLUMNS, [(key, _row(one)) for key, one in stats.items()], pick=True)
    drawn = _to_draw(stats, clips)
    films = _films(drawn, progress)
    if len(drawn) < len(stats):
        example = next(one.task for key, one in stats.items() if key not in drawn)
        page.note(f"Clips are of {len(drawn)} of {len(stats)} datasets; --clips {shlex.quote(example)} draws those of a task.")
    page.panels(_LAYOUTS, {key: _traces(one) for key, one in stats.items()}, films)
    return page


def _key(one: tuple[str, str, Path], others: Sequence[tuple[str, str, Path]]) -> str:
    task, source, _ = one
    return task if sum(other[0] == task for other in others) == 1 else f"{task} ({source})"


def _lead(stats: Sequence[DatasetStats]) -> str:
    episodes, steps = sum(len(one.returns) for one in stats), sum(int(one.lengths.sum()) for one in stats)
    size = sum(one.bytes for one in stats)
    return (
        f"{len(stats)} datasets of {len({one.task for one in stats})} tasks: {episodes:,} episodes, {steps:,} steps, "
        f"{size / 1e6:,.1f} MB. Click on a header to sort, on a task to see its episodes."
    )


def _row(one: DatasetStats) -> list[Cell]:
    some = len(one.returns) > 0
    low, median, high = (float(f(one.returns)) if some else None for f in (np.min, np.median, np.max))
    scores = one.scores
    return [
        Cell(one.task),
        Cell("-" if one.spec is None else one.spec.domain),
        Cell(one.source),
        Cell(one.demonstrator),
        number(len(one.returns), 0),
        number(int(one.lengths.sum()), 0),
        *(number(value) for value in (low, median, high)),
        Cell("-", high, _bars(one)) if some else Cell("-"),
        number(float(scores.mean()) if scores is not None and some else None),
        percent(float(one.success.mean()) if one.success is not None else None),
        _length(one),
        percent(one.clipped, 1),
        Cell("; ".join(one.problems) or "-"),
    ]


def _length(one: DatasetStats) -> Cell:
    if not len(one.lengths):
        return Cell("-")
    low, high, median = int(one.lengths.min()), int(one.lengths.max()), float(np.median(one.lengths))
    return Cell(f"{low:,}" if low == high else f"{low:,} to {high:,}, {median:,.0f}", median)


def _bars(one: DatasetStats) -> list[float]:
    counts, _ = np.histogram(one.returns, bins=_BINS)
    return [round(count / counts.max(), 2) for count in counts.tolist()]


def _to_draw(stats: Mapping[str, DatasetStats], clips: Sequence[str] | None) -> dict[str, DatasetStats]:
    if clips is None:
        return dict(stats) if len(stats) <= CLIPPED_TASKS else {}
    return {key: one for key, one in stats.items() if one.task in clips}


def _films(drawn: Mapping[str, DatasetStats], progress: bool | None) -> dict[str, list[Clip]]:
    budget = bytes_each(3 * len(drawn))
    bar = tqdm(drawn.items(), desc="clips", unit="dataset", disable=not shows_progress(progress))
    return {key: clips_of_dataset(one, budget) for key, one in bar}


_GRID = {"gridcolor": "#eee", "zeroline": False}
_LAYOUTS = {
    "returns": {
        "title": {"text": "returns"},
        "xaxis": {"title": {"text": "return of an episode"}, **_GRID},
        "yaxis": {"title": {"text": "episodes"}, **_GRID},
        "bargap": 0.05,
    },
    "actions": {
        "title": {"text": "actions: range, mean ± deviation"},
        "xaxis": {"title": {"text": "entry of the action"}, "dtick": 1, **_GRID},
        "yaxis": {"range": [-1.1, 1.1], **_GRID},
        "showlegend": False,
    },
    "observations": {
        "title": {"text": "observations: range, mean ± deviation"},
        "xaxis": {"title": {"text": "entry of the observation"}, **_GRID},
        "yaxis": dict(_GRID),
        "showlegend": False,
    },
}


def _traces(one: DatasetStats) -> dict[str, list[dict[str, Any]]]:
    if one.actions is None or one.observations is None:
        return {}
    counts, edges = np.histogram(one.returns, bins=_BINS)
    middles, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    histogram = {
        "type": "bar",
        "x": shorts(middles),
        "y": counts.tolist(),
        "width": float(f"{width:.4g}"),
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "%{y} episodes around %{x}<extra></extra>",
    }
    return {"returns": [histogram], "actions": _ranges(one.actions), "observations": _ranges(one.observations)}


def _ranges(ranges: Ranges) -> list[dict[str, Any]]:
    places = list(range(len(ranges.mean)))
    spans: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 2, "width": 3, "color": "#999"}
    spans |= {"array": shorts(ranges.high - ranges.mean), "arrayminus": shorts(ranges.mean - ranges.low)}
    deviation = {"type": "data", "array": shorts(ranges.deviation), "thickness": 5, "width": 0, "color": COLOURS[0]}
    dots = {"type": "scatter", "mode": "markers", "x": places, "y": shorts(ranges.mean)}
    return [
        {**dots, "error_y": spans, "marker": {"size": 1, "color": "#999"}, "hoverinfo": "skip"},
        {
            **dots,
            "error_y": deviation,
            "marker": {"size": 5, "color": "#222"},
            "hovertemplate": "%{x}: mean %{y}<extra></extra>",
        },
    ]
