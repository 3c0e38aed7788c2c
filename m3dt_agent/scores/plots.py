"""Draws the figure of scores (`save_score_figure`), and holds the style that all figures share.

    mean           ▇▇▇▇▇▇▇▇▇▇├─┤
    metaworld
    drawer-open    ▇▇▇▇▇▇▇▇▇▇▇▇▇├┤
    …

The figure is as high as its tasks need. Colours are Okabe and Ito's, which people with any colour vision can tell apart; the
heat map is `cividis`, whose lightness is monotonic. Needs matplotlib (extra `plots`), which is imported when a figure is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import tasks as task_table
from ..errors import ConfigError, MissingDependencyError
from ..system.disk import whole_file
from ..system.text import visible
from ..tasks import TaskSpec
from .summaries import AGENT_POLICIES, Interval, Summary, TaskSummary

POLICY_COLOURS = {"random": "#999999", "zero": "#56B4E9", "backbone": "#0072B2", "final": "#D55E00"}
_SAME_COLOUR = {AGENT_POLICIES["none"]: "backbone", AGENT_POLICIES["mixture"]: "final"}  # the quickstart's two agents
_MAX_POLICIES = len(POLICY_COLOURS)
GRID = {"color": "0.9", "linewidth": 0.8}


def require_matplotlib() -> None:
    """Checks that figures can be drawn, so that a command fails before a long training and not after it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("figures need matplotlib: pip install 'm3dt-agent[plots]'")


def save_score_figure(summaries: Sequence[Summary], path: Path, tasks: Iterable[TaskSpec] = ()) -> Path:
    """Draws the normalized scores of 1 to 4 policies, one bar with its 95% interval per task, and writes the figure to `path`.

    The mean over tasks comes first, then the tasks by domain in the published order. A policy has no bar for tasks that it did
    not play. A task that is scored by its return has no bar but its return in words. The suffix of `path` chooses the format.
    The file is written whole or not at all.

    Args:
        tasks: specs that say which domain a task is of, such as a bank's; others are those of this process.

    Raises:
        ConfigError: no summaries, more than four, or two of one policy.
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not 1 <= len({summary.policy for summary in summaries}) == len(summaries) <= _MAX_POLICIES:
        names = ", ".join(summary.policy for summary in summaries) or "none"
        raise ConfigError(f"the figure shows 1 to {_MAX_POLICIES} policies, each once; got {names}")
    rows = _score_rows(summaries, tasks)
    figure = Figure(figsize=(8, 1.2 + sum(rows.values())), layout="constrained")
    _draw_score_bars(figure.add_subplot(), summaries, rows)
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    """Writes `figure` to `path`, whole or not at all, and returns `path`."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return path


def plain_label(text: str) -> str:
    """A label that matplotlib shows as it is: not as mathematics, and not hidden from the legend."""
    label = visible(text, longest=60).replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def plain_axes(axes: Any, title: str) -> None:
    """The style of all figures: a bold title, no frame above and to the right."""
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


_Line = tuple[Literal["mean", "domain", "task"], str]
"""A line of the figure of scores: its kind, and its label. A domain may be called as one of its tasks."""
_MEAN: _Line = ("mean", "mean")
_RIGHT_END = 108.0
"""Where the axis of scores ends: behind 100 and its label. Scores beyond 0 and 100 are cut off there, and written."""


def _score_rows(summaries: Sequence[Summary], tasks: Iterable[TaskSpec] = ()) -> dict[_Line, float]:
    """The lines of the figure from top to bottom, with their heights in inches: the mean, then every domain and its tasks."""
    specs = {task.name: task for task in tasks}
    found = dict.fromkeys(name for summary in summaries for name in summary.tasks)
    bars, text = 0.1 + 0.11 * len(summaries), 0.21
    rows: dict[_Line, float] = {_MEAN: bars}
    for domain, names in task_table.by_group(specs.get(name, name) for name in found).items():
        rows["domain", domain] = text
        rows.update({("task", name): bars for name in names})
    return rows


def _draw_score_bars(axes: Any, summaries: Sequence[Summary], rows: Mapping[_Line, float]) -> None:
    """Draws horizontal bars, in each line the first policy's on top; whiskers are intervals. The y axis is in inches."""
    heights = np.array(list(rows.values()))
    y = dict(zip(rows, np.cumsum(heights) - heights / 2, strict=True))
    height = 0.84 * rows[_MEAN] / len(summaries)
    colours = _policy_colours([summary.policy for summary in summaries])
    for i, summary in enumerate(summaries):
        down = (i - (len(summaries) - 1) / 2) * height
        bars: dict[_Line, tuple[float, Interval]] = {
            ("task", name): (task.mean_score, score_interval(task, summary.runs))
            for name, task in summary.tasks.items()
            if task.on_scale
        }
        if bars:
            bars = {_MEAN: (summary.mean_score, summary.mean_interval), **bars}
        _draw_bars(axes, {y[line] + down: bar for line, bar in bars.items()}, height, colours[i], plain_label(summary.policy))
        for name, task in summary.tasks.items():
            if not task.on_scale:
                _write(axes, 0.0, y["task", name] + down, f"return {task.mean_return:,.1f}", colours[i])
    _label_rows(axes, y, len(summaries))
    axes.set(xlim=(0, _RIGHT_END), ylim=(heights.sum() + 0.05, -0.05))


def _draw_bars(axes: Any, bars: Mapping[float, tuple[float, Interval]], height: float, colour: str, label: str) -> None:
    """One policy's bars with whiskers and numbers. bars: place on the y axis → score and interval."""
    at = np.array(list(bars))
    values = np.array([score for score, _ in bars.values()])
    low, high = np.array([interval for _, interval in bars.values()]).reshape(-1, 2).T
    whiskers = np.maximum([values - low, high - values], 0.0)  # a bootstrap interval can lie beside the mean
    axes.barh(at, values, height * 0.9, color=colour, label=label)
    axes.errorbar(values, at, xerr=whiskers, fmt="none", ecolor="0.2", elinewidth=0.9, capsize=1.6)
    for position, value, end in zip(at, values, np.maximum(values, high), strict=True):
        _write(axes, end, position, f"{value:.0f}", "0.25")


def _write(axes: Any, end: float, position: float, text: str, colour: str) -> None:
    """Writes text behind the end of a bar; of one that is cut off, at the end of the axes."""
    axes.text(min(max(end, 0.0) + 1.2, _RIGHT_END), position, text, va="center", fontsize=6, color=colour)


def _label_rows(axes: Any, y: Mapping[_Line, float], policies: int) -> None:
    axes.set_yticks(list(y.values()), [label for _, label in y], fontsize=8)
    for label, (kind, _) in zip(axes.get_yticklabels(), y, strict=True):
        if kind != "task":
            label.set_fontweight("bold")
    axes.set_xlabel("normalized score (0 to 100), 95% interval", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", **GRID)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=True, labelsize=8)  # with 160 tasks, the bottom axis is far from the first lines
    axes.figure.legend(frameon=False, ncols=policies, loc="outside upper left", fontsize=9)


def _policy_colours(policies: Sequence[str]) -> list[str]:
    """One colour per policy: its own if it has one, else the next free colour."""
    own = [POLICY_COLOURS.get(_SAME_COLOUR.get(policy, policy)) for policy in policies]
    free = [colour for colour in reversed(POLICY_COLOURS.values()) if colour not in own]
    return [colour or free.pop(0) for colour in own]


def score_interval(task: TaskSummary, runs: int) -> Interval:
    """Wilson's interval if the score is one run's success rate: after successes only, a bootstrap interval has no width."""
    if runs > 1 or task.success_interval is None or task.rule != "success":
        return task.score_interval
    low, high = task.success_interval
    return 100 * low, 100 * high
