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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import tasks as task_table
from .errors import ConfigError, MissingDependencyError
from .scores import AGENT_POLICIES, Interval, Summary, TaskSummary
from .system.disk import whole_file
from .system.text import visible

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


def save_score_figure(summaries: Sequence[Summary], path: Path) -> Path:
    """Draws the normalized scores of 1 to 4 policies, one bar with its 95% interval per task, and writes the figure to `path`.

    The mean over tasks comes first, then the tasks by domain in the published order. A policy has no bar for tasks that it did
    not play. The suffix of `path` chooses the format. The file is written whole or not at all.

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


def _score_rows(summaries: Sequence[Summary]) -> dict[str, float]:
    """The lines of the figure from top to bottom, with their heights in inches: "mean", then every domain and its tasks."""
    found = {name for summary in summaries for name in summary.tasks}
    bars, text = 0.1 + 0.11 * len(summaries), 0.21
    rows = {"mean": bars}
    for domain, names in task_table.by_group(found).items():
        rows |= {domain: text} | dict.fromkeys(names, bars)
    return rows


def _draw_score_bars(axes: Any, summaries: Sequence[Summary], rows: Mapping[str, float]) -> None:
    """Draws horizontal bars, in each line the first policy's on top; whiskers are intervals. The y axis is in inches."""
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
        whiskers = np.maximum([values - low, high - values], 0.0)  # a bootstrap interval can lie beside the mean
        axes.barh(at, values, height * 0.9, color=colours[i], label=plain_label(summary.policy))
        axes.errorbar(values, at, xerr=whiskers, fmt="none", ecolor="0.2", elinewidth=0.9, capsize=1.6)
        for position, value, end in zip(at, values, np.maximum(values, high), strict=True):
            axes.text(end + 1.2, position, f"{value:.0f}", va="center", fontsize=6, color="0.25")
    _label_rows(axes, y, len(summaries))
    axes.set(xlim=(0, 108), ylim=(heights.sum() + 0.05, -0.05))


def _label_rows(axes: Any, y: Mapping[str, float], policies: int) -> None:
    axes.set_yticks(list(y.values()), list(y), fontsize=8)
    bold = {"mean", "others", *(task.domain for task in task_table.known())}
    for label in axes.get_yticklabels():
        if label.get_text() in bold:
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


def _score_interval(task: TaskSummary, runs: int) -> Interval:
    """Wilson's interval if the score is one run's success rate: after successes only, a bootstrap interval has no width."""
    if runs > 1 or task.success_interval is None:
        return task.score_interval
    low, high = task.success_interval
    return 100 * low, 100 * high
