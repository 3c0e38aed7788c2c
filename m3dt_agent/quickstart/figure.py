"""The quickstart's figure (`save_figure`): learning curves, expert weights and scores.

┌───────────────────────┬───────────────────────┐
│ learning curves of    │ expert weights,       │
│ the three stages      │ tasks × experts       │
├───────────────────────┴───────────────────────┤
│ normalized scores per task, one bar per policy│
└───────────────────────────────────────────────┘
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..scores.plots import (
    GRID,
    POLICY_COLOURS,
    plain_axes,
    require_matplotlib,
    save,
)

STAGE_COLOURS = {"backbone": "#0072B2", "experts": "#E69F00", "router": "#009E73"}


@dataclass(frozen=True, slots=True)
class FigureData:
    """Everything that the figure shows.

    curves: stage → (steps, loss), both (n,). weights: (tasks, experts), mean router weights whose rows sum to 1. groups: task →
    the expert that was trained on it. scores: policy → task → normalized score.
    """

    tasks: tuple[str, ...]
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    weights: np.ndarray[Any, np.dtype[np.float64]]
    groups: Mapping[str, int]
    scores: Mapping[str, Mapping[str, float]]


def save_figure(data: FigureData, path: Path) -> Path:
    """Draws `data` and writes it to `path`, completely or not at all; the suffix of `path` chooses the format.

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
    return save(figure, path)


def _smooth(values: Sequence[float], width: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n,) centred running mean over up to `width` points, over fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(i - width // 2, 0), np.minimum(i + width // 2 + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _draw_curves(axes: Any, data: FigureData) -> None:
    """Draws the loss over steps, one stage after the other."""
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
    plain_axes(axes, "Learning curves")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="training step, stages in order", ylabel="training loss (mean squared action error)")
    axes.grid(axis="y", **GRID)
    axes.legend(frameon=False)


def _draw_weights(figure: Any, axes: Any, data: FigureData) -> None:
    """Draws the mean router weight of each expert on each task; a frame marks the expert that was trained on the task."""
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
    """Draws a group of bars per task, and the mean over tasks apart at the end."""
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
    plain_axes(axes, "Normalized scores")
    axes.set(ylabel="normalized score (0 to 100)", ylim=(0, 108))
    axes.grid(axis="y", **GRID)
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, ncols=len(data.scores), loc="lower right", bbox_to_anchor=(1, 1))
