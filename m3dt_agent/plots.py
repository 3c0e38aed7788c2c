"""Figures. The quickstart's, in one file (`save_figure`): how it learned, who routes where, and what came out.

    ┌───────────────────────┬───────────────────────┐
    │ learning curves of    │ expert weights,       │
    │ the three stages      │ tasks × experts       │
    ├───────────────────────┴───────────────────────┤
    │ normalized scores per task, one bar per policy│
    └───────────────────────────────────────────────┘

And a model card's (`save_score_figure`), as high as there are tasks:

    mean           ▇▇▇▇▇▇▇▇▇▇├─┤
    metaworld
    drawer-open    ▇▇▇▇▇▇▇▇▇▇▇▇▇├┤
    …

Colours are Okabe and Ito's, distinguishable with any colour vision; the heat map is `cividis`, whose lightness is monotonic.
Needs matplotlib (extra `plots`), imported when a figure is made.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import tasks as task_table
from .config import STAGES
from .errors import ConfigError, MissingDependencyError
from .scores import Interval, Summary, TaskSummary

POLICY_COLOURS = {"random": "#999999", "zero": "#56B4E9", "backbone": "#0072B2", "final": "#D55E00"}
STAGE_COLOURS = {"backbone": "#0072B2", "experts": "#E69F00", "router": "#009E73"}
_SAME_COLOUR = {"m3dt-backbone": "backbone", "m3dt-mixture": "final"}  # what evaluations call the quickstart's two agents
_MAX_POLICIES = len(POLICY_COLOURS)
_GRID = {"color": "0.9", "linewidth": 0.8}


@dataclass(frozen=True, slots=True)
class FigureData:
    """Everything the figure shows.

    curves: stage → (steps, loss), both (n,). weights: (tasks, experts) mean router weights, rows summing to 1. groups: task →
    expert it was trained in. scores: policy → task → normalized score.
    """

    tasks: tuple[str, ...]
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    weights: np.ndarray[Any, np.dtype[np.float64]]
    groups: Mapping[str, int]
    scores: Mapping[str, Mapping[str, float]]


def require_matplotlib() -> None:
    """Fail now rather than after the training whose figure cannot be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("figures need matplotlib: pip install 'm3dt-agent[plots]'")


def learning_curves(bank: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Stage → (steps, training loss) from the bank's logs; in stage 2 the mean over the experts."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for stage in STAGES:
        losses: dict[int, list[float]] = {}
        with (bank / "logs" / f"{stage}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                losses.setdefault(int(row["step"]), []).append(float(row["loss"]))
        curves[stage] = (list(losses), [float(np.mean(values)) for values in losses.values()])
    return curves


def save_figure(data: FigureData, path: Path) -> Path:
    """Draw `data` and write it to `path` (its suffix chooses the format), whole or not at all.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.05), width_ratios=(1.15, 1))
    _draw_curves(figure.add_subplot(grid[0, 0]), data)
    _draw_weights(figure, figure.add_subplot(grid[0, 1]), data)
    _draw_scores(figure.add_subplot(grid[1, :]), data)
    return _save(figure, path)


def save_score_figure(summaries: Sequence[Summary], path: Path) -> Path:
    """Draw the normalized scores of 1 to 4 policies, a bar with its 95% interval per task, and write the figure to `path`.

    Tasks stand by domain, in the published order, under the mean over tasks; a policy without a task has no bar there. The
    suffix of `path` chooses the format; the file appears whole or not at all.

    Raises:
        ConfigError: no summaries, more than four, or two of one policy.
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not 1 <= len({summary.policy for summary in summaries}) == len(summaries) <= _MAX_POLICIES:
        names = ", ".join(summary.policy for summary in summaries) or "none"
        raise ConfigError(f"the figure shows 1 to {_MAX_POLICIES} policies, each once; got {names}")
    rows = _score_rows(summaries)
    figure = Figure(figsize=(8, 1.2 + sum(rows.values())), layout="constrained")
    _draw_score_bars(figure.add_subplot(), summaries, rows)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _smooth(values: Sequence[float], width: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n,) centred running mean over up to `width` points; the ends average what there is of the window."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(i - width // 2, 0), np.minimum(i + width // 2 + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _draw_curves(axes: Any, data: FigureData) -> None:
    """Loss over steps, the stages one after another."""
    from matplotlib.ticker import LogLocator, NullFormatter

    start = 0
    for stage, (steps, loss) in data.curves.items():
        if not len(steps):
            continue
        x = start + np.asarray(steps)
        axes.plot(x, loss, color=STAGE_COLOURS[stage], alpha=0.25, linewidth=1)
        axes.plot(
            x,
            _smooth(loss, max(1, len(loss) // 15)),
            color=STAGE_COLOURS[stage],
            linewidth=2,
            marker="o" if len(x) == 1 else "",
            label=stage,
        )
        if start:
            axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        start = int(x[-1])
    _plain(axes, "Learning curves")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="training step, stages in order", ylabel="training loss (mean squared action error)")
    axes.grid(axis="y", **_GRID)
    axes.legend(frameon=False)


def _draw_weights(figure: Any, axes: Any, data: FigureData) -> None:
    """Mean router weight per task and expert; a frame marks the expert that was trained on the task."""
    image = axes.imshow(data.weights, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, task in enumerate(data.tasks):
        for expert, weight in enumerate(data.weights[row]):
            own = data.groups[task] == expert
            colour = "white" if weight < 0.55 else "black"
            axes.text(expert, row, f"{weight:.2f}", ha="center", va="center", color=colour, weight="bold" if own else "normal")
            if own:
                axes.add_patch(_frame(expert, row))
    axes.set_xticks(range(data.weights.shape[1]), [str(e) for e in range(data.weights.shape[1])])
    axes.set_yticks(range(len(data.tasks)), data.tasks)
    axes.set_xlabel("expert (framed: the expert trained on the task)")
    axes.tick_params(length=0)
    axes.set_title("Expert weights", loc="left", fontweight="bold", fontsize=11)
    figure.colorbar(image, ax=axes, label="mean router weight", shrink=0.9)


def _frame(expert: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((expert - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2)


def _draw_scores(axes: Any, data: FigureData) -> None:
    """Grouped bars per task, the mean over tasks last, set apart."""
    x = np.append(np.arange(len(data.tasks)), len(data.tasks) + 0.3)
    width = 0.8 / len(data.scores)
    for i, (policy, by_task) in enumerate(data.scores.items()):
        values = [by_task[task] for task in data.tasks]
        heights = np.array([*values, np.mean(values)])
        bars = axes.bar(
            x + (i - (len(data.scores) - 1) / 2) * width, heights, width * 0.92, color=POLICY_COLOURS[policy], label=policy
        )
        axes.bar_label(bars, [f"{h:.0f}" for h in heights], fontsize=7, padding=1, color="0.25")
    names = [textwrap.fill(task, 15) for task in data.tasks]  # neighbours must not touch
    axes.set_xticks(x, [*names, "mean"])
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.axvline(len(data.tasks) - 0.35, color="0.6", linewidth=0.8, linestyle=":")
    _plain(axes, "Normalized scores")
    axes.set(ylabel="normalized score (0 to 100)", ylim=(0, 108))
    axes.grid(axis="y", **_GRID)
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, ncols=len(data.scores), loc="lower right", bbox_to_anchor=(1, 1))


def _score_rows(summaries: Sequence[Summary]) -> dict[str, float]:
    """The lines of the figure from top to bottom, with their heights in inches: "mean", then each domain and its tasks."""
    found = {name for summary in summaries for name in summary.tasks}
    bars, text = 0.1 + 0.11 * len(summaries), 0.21
    rows = {"mean": bars}
    for domain in task_table.DOMAINS:
        if names := [task.name for task in task_table.by_domain(domain) if task.name in found]:
            rows |= {domain: text} | dict.fromkeys(names, bars)
    return rows


def _draw_score_bars(axes: Any, summaries: Sequence[Summary], rows: Mapping[str, float]) -> None:
    """Horizontal bars, the first policy's uppermost in each line; whiskers are intervals. The y axis is in inches."""
    heights = np.array(list(rows.values()))
    y = dict(zip(rows, np.cumsum(heights) - heights / 2, strict=True))
    height = 0.84 * rows["mean"] / len(summaries)
    colours = _policy_colours([summary.policy for summary in summaries])
    for i, summary in enumerate(summaries):
        scores = {"mean": (summary.mean_score, summary.mean_interval)}
        scores |= {name: (task.mean_score, _score_interval(task, summary.runs)) for name, task in summary.tasks.items()}
        at = np.array([y[name] for name in scores]) + (i - (len(summaries) - 1) / 2) * height
        values = np.array([score for score, _ in scores.values()])
        low, high = np.array([interval for _, interval in scores.values()]).T
        whiskers = np.maximum([values - low, high - values], 0.0)  # a bootstrap interval need not hold its mean
        axes.barh(at, values, height * 0.9, color=colours[i], label=summary.policy)
        axes.errorbar(values, at, xerr=whiskers, fmt="none", ecolor="0.2", elinewidth=0.9, capsize=1.6)
        for position, value, end in zip(at, values, np.maximum(values, high), strict=True):
            axes.text(end + 1.2, position, f"{value:.0f}", va="center", fontsize=6, color="0.25")
    _label_rows(axes, y, len(summaries))
    axes.set(xlim=(0, 108), ylim=(heights.sum() + 0.05, -0.05))


def _label_rows(axes: Any, y: Mapping[str, float], policies: int) -> None:
    axes.set_yticks(list(y.values()), list(y), fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text() in ("mean", *task_table.DOMAINS):
            label.set_fontweight("bold")
    axes.set_xlabel("normalized score (0 to 100), 95% interval", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", **_GRID)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=True, labelsize=8)  # the bottom of 160 tasks is far from the first
    axes.figure.legend(frameon=False, ncols=policies, loc="outside upper left", fontsize=9)


def _policy_colours(policies: Sequence[str]) -> list[str]:
    """One colour each: its own where a policy has one, else the next that is free."""
    own = [POLICY_COLOURS.get(_SAME_COLOUR.get(policy, policy)) for policy in policies]
    free = [colour for colour in reversed(POLICY_COLOURS.values()) if colour not in own]
    return [colour or free.pop(0) for colour in own]


def _score_interval(task: TaskSummary, runs: int) -> Interval:
    """Wilson's where a single run's score is a success rate: of nothing but successes the bootstrap would make a certainty."""
    if runs > 1 or task.success_interval is None:
        return task.score_interval
    low, high = task.success_interval
    return 100 * low, 100 * high
