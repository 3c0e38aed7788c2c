"""Draws the figures of a table, each as PNG and SVG.

    <name>-scores      mean score per method with its 95% interval, and the paper's number
    <name>-windows     score against training windows; a line starts at the score after 75% of them
    <name>-flop        score against training FLOP
    <name>-profiles    share of (seed, task) cells above each score, with pointwise 95% bands
    <name>-curves      training loss against windows, a line per training seed
    <name>-experts-I   mean router weights, tasks × experts, of the first training seed in row I that has them
    <name>-tasks       score against the number of tasks, for an overview

Colours are Okabe and Ito's, as in `m3dt_agent.scores.plots`. After the first eight rows, lines are dashed and markers change.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3dt_agent.errors import DatasetError
from m3dt_agent.scores import Floats
from m3dt_agent.scores.plots import plain_label, require_matplotlib
from m3dt_agent.system.disk import whole_file

from .paper_numbers import best_baselines, paper_number
from .records import QUARTER, Overview, Row, Table
from .statistics import performance_profile, profile_band
from .tables import ranked

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999")
_MARKERS, _LINES = "os^Dv", ("-", "--", ":", "-.")
_GRID = {"color": "0.9", "linewidth": 0.8}
_THRESHOLDS = np.linspace(0.0, 100.0, 101)


def write_figures(table: Table, runs: Sequence[Path], folder: Path, name: str) -> list[str]:
    """Draws every figure that there is data for, and returns the figures' names without suffix.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        DatasetError: an `expert_weights.json` is damaged.
    """
    require_matplotlib()
    draw: dict[str, Callable[[Any], None]] = {"scores": functools.partial(_draw_scores, table=table)}
    if any(row.windows for row in table.rows):
        draw["windows"] = functools.partial(_draw_costs, table=table, cost="windows", label="training windows")
    if any(row.training_flop for row in table.rows):
        draw["flop"] = functools.partial(_draw_costs, table=table, cost="training_flop", label="training FLOP")
    draw["profiles"] = functools.partial(_draw_profiles, table=table)
    if any(len(curve) for row in table.rows for curve in row.curves):
        draw["curves"] = functools.partial(_draw_curves, table=table)
    for i, row in enumerate(ranked(table)):
        if weights := _row_weights(row, runs):
            draw[f"experts-{i}"] = functools.partial(_draw_experts, label=row.label, weights=weights)
    for figure, drawing in draw.items():
        _save(drawing, folder, f"{name}-{figure}")
    return [f"{name}-{figure}" for figure in draw]


def write_overview_figures(overview: Overview, folder: Path, name: str) -> list[str]:
    """Draws the score against the number of tasks, if that varies, and returns the figure's name without suffix.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    if len(set(overview.sizes)) < 2:
        return []
    _save(functools.partial(_draw_sizes, overview=overview), folder, f"{name}-tasks")
    return [f"{name}-tasks"]


def expert_weights(file: Path) -> dict[str, list[float]]:
    """Reads {task: mean router weight of each expert} from a cell's `expert_weights.json`.

    Raises:
        DatasetError: the file holds something else.
    """
    try:
        found = {str(task): [float(weight) for weight in weights] for task, weights in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} must hold a list of numbers for every task: {error}") from error
    widths = {len(weights) for weights in found.values()}
    if len(widths) != 1 or 0 in widths or not all(math.isfinite(weight) for weights in found.values() for weight in weights):
        raise DatasetError(f"{file} must hold as many finite weights for every task as there are experts")
    return found


def _row_weights(row: Row, runs: Sequence[Path]) -> dict[str, list[float]]:
    """The router weights of the first of the row's cells that has any; {} if none has."""
    files = [run / cell / place for cell in row.cell_ids for run in runs for place in _PLACES]
    return next((expert_weights(file) for file in files if file.exists()), {})


_PLACES = ("expert_weights.json", "work/expert_weights.json")


def _save(draw: Callable[[Any], None], folder: Path, name: str) -> None:
    """Draws a figure and writes `name`.png and .svg. The same data give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "m3dt", "axes.titlesize": 11, "axes.titleweight": "bold"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        draw(figure)
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            with whole_file(folder / f"{name}{suffix}") as temporary:
                figure.savefig(temporary, dpi=120, metadata=metadata)


def _axes(figure: Any, title: str, x: str, y: str) -> Any:
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(**_GRID)
    axes.set(xlabel=x, ylabel=y)
    return axes


def _style(table: Table, row: Row) -> dict[str, Any]:
    """The row's colour, marker and line, the same in every figure of the table."""
    return _style_of([other.label for other in table.rows].index(row.label))


def _style_of(i: int) -> dict[str, Any]:
    turn = i // len(COLOURS)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": _MARKERS[turn % len(_MARKERS)],
        "linestyle": _LINES[turn % len(_LINES)],
    }


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def _draw_scores(figure: Any, table: Table) -> None:
    rows = ranked(table)
    figure.set_figheight(1.3 + 0.32 * len(rows))
    axes = _axes(figure, "Mean score", "normalized score (0 to 100), 95% interval", "")
    for y, row in enumerate(rows):
        style = _style(table, row) | {"linestyle": "none", "markersize": 6, "capsize": 3}
        axes.errorbar(row.mean.value, y, xerr=_whiskers(row), **style)
        if number := paper_number(row.method, table.task_set):
            axes.plot(number.score, y, marker="|", color="0.3", markersize=14, linestyle="none", label="paper")
    for number, line in zip(best_baselines(table.task_set), _LINES[1:], strict=False):
        axes.axvline(number.score, color="0.6", linestyle=line, linewidth=1, label=f"paper's best baseline ({number.source})")
    handles, labels = axes.get_legend_handles_labels()
    if once := dict(zip(labels, handles, strict=True)):
        figure.legend(once.values(), once.keys(), loc="outside lower right", frameon=False, fontsize=8, ncols=len(once))
    axes.set_yticks(range(len(rows)), [plain_label(row.label) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _whiskers(row: Row) -> list[list[float]]:
    """Distances to the ends of the interval. They are at least 0: a bootstrap interval may leave out its estimate."""
    return [[max(0.0, row.mean.value - row.mean.low)], [max(0.0, row.mean.high - row.mean.value)]]


def _draw_costs(figure: Any, table: Table, cost: str, label: str) -> None:
    """Score against a cost on a logarithmic axis. A method without cost is a horizontal line."""
    axes = _axes(figure, f"Score against {label}", label, "normalized score, 95% interval")
    for row in table.rows:
        style, spent = _style(table, row), getattr(row, cost)
        if not spent:
            axes.axhline(row.mean.value, color=style["color"], linestyle=":", label=plain_label(row.label))
            continue
        axes.errorbar(spent, row.mean.value, yerr=_whiskers(row), capsize=3, label=plain_label(row.label), **style)
        if row.gain is not None:
            before = (float(QUARTER) * spent, row.mean.value - row.gain)
            axes.plot((before[0], spent), (before[1], row.mean.value), color=style["color"], linewidth=1)
    axes.set_xscale("log")
    _legend(figure, axes)


def _draw_profiles(figure: Any, table: Table) -> None:
    axes = _axes(figure, "Performance profiles", "score τ", "share of (seed, task) cells above τ")
    for row in ranked(table):
        style = _style(table, row)
        axes.plot(
            _THRESHOLDS,
            performance_profile(row.scores.cells, _THRESHOLDS),
            color=style["color"],
            linestyle=style["linestyle"],
            label=plain_label(row.label),
        )
        axes.fill_between(_THRESHOLDS, *profile_band(row.scores, _THRESHOLDS), color=style["color"], alpha=0.12, linewidth=0)
    axes.set(xlim=(0, 100), ylim=(-0.02, 1.02))
    _legend(figure, axes)


def _draw_curves(figure: Any, table: Table) -> None:
    axes = _axes(figure, "Training", "training windows", "training loss")
    for row in table.rows:
        style = _style(table, row)
        for i, curve in enumerate(curve for curve in row.curves if len(curve)):
            windows, loss = np.array(curve, dtype=np.float64).T
            marker = style["marker"] if len(windows) == 1 else ""
            label = plain_label(row.label) if i == 0 else None
            axes.plot(
                windows, loss, color=style["color"], linestyle=style["linestyle"], marker=marker, linewidth=1, label=label
            )
    if all(loss > 0 for row in table.rows for curve in row.curves for _, loss in curve):
        axes.set_yscale("log")
    _legend(figure, axes)


def _draw_sizes(figure: Any, overview: Overview) -> None:
    """The mean over the runs, with whiskers to the lowest and the highest run."""
    axes = _axes(figure, "Score against the number of tasks", "tasks", "normalized score, lowest to highest run")
    for i, (label, found) in enumerate(overview.rows.items()):
        points = [(size, score) for size, score in zip(overview.sizes, found, strict=True) if score is not None]
        sizes, scores = [size for size, _ in points], [score for _, score in points]
        whiskers = [[score.mean - score.low for score in scores], [score.high - score.mean for score in scores]]
        axes.errorbar(
            sizes,
            [score.mean for score in scores],
            yerr=np.maximum(whiskers, 0.0),
            capsize=3,
            label=plain_label(label),
            **_style_of(i),
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(overview.sizes)), [str(size) for size in sorted(set(overview.sizes))])
    axes.minorticks_off()
    _legend(figure, axes)


def _draw_experts(figure: Any, label: str, weights: Mapping[str, Sequence[float]]) -> None:
    values: Floats = np.array(list(weights.values()))
    figure.set_figheight(1.6 + 0.16 * len(values))
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=max(1e-9, float(values.max())), aspect="auto")
    axes.set_title(f"Expert use: {plain_label(label)}", loc="left")
    axes.set_yticks(range(len(values)), [plain_label(task) for task in weights], fontsize=7)
    axes.set_xticks(range(values.shape[1]), [str(e) for e in range(values.shape[1])], fontsize=7)
    axes.set_xlabel("expert")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="mean router weight", shrink=0.9)
