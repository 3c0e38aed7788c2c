"""The figures of a bank's page that show all tasks, one line each: their scores, and the router's weights of the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bank_scores import Score, Scores
from .page import COLOURS, Figure, label, short, shorts
from .routing import RouterWeights

_MOST_NUMBERS = 400_000
"""Weights, of a task, an expert and a block, that a page holds; of a larger bank it shows the mean of the blocks alone."""
_LINE, _LINE_OF_FEW = 15, 26
"""Pixels of a task's line, of many and of few tasks."""
_SYMBOLS = ("circle", "diamond", "square", "x")
_PALETTE = [COLOURS[i] for i in (1, 2, 0, 7, 3, 4, 5, 6)]  # the bank, its demonstrators, others
_SHOWN = 3
"""Policies that are shown at first; a click on the legend shows the others."""


def height(names: Sequence[str]) -> int:
    """Pixels of a figure with these lines, without its axis."""
    return max(160, len(names) * (_LINE_OF_FEW if len(names) <= 20 else _LINE))


def score_figure(names: Sequence[str], scores: Scores) -> Figure:
    """The mean scores of these tasks with their intervals, one marker per policy."""
    data = []
    for i, (policy, found) in enumerate(scores.policies.items()):
        there = [name for name in names if name in found]
        low, high = ([short(_end(found[name], side)) for name in there] for side in (-1, 1))
        own = policy == scores.own
        bars = {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1, "width": 2}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(policy) + (" (this bank)" if own else ""),
                "x": shorts(found[name].mean for name in there),
                "y": [label(name) for name in there],
                "marker": {"color": _PALETTE[i % 8], "size": 8 if own else 6, "symbol": _SYMBOLS[i % 4]},
                "error_x": bars,
                "visible": True if i < _SHOWN else "legendonly",
            }
        )
    axis = {"title": {"text": "normalized score, 95% interval"}, "range": [-3, 103], "side": "top", "gridcolor": "#eee"}
    layout = _task_axis(names) | {"xaxis": axis, "margin": {"l": 20, "r": 16, "t": 90, "b": 20}}
    layout["showlegend"] = True
    layout["legend"] = {"orientation": "h", "y": 1, "yanchor": "top", "x": 0, "yref": "container"}
    return {"data": data, "layout": layout}


def _end(score: Score, side: int) -> float:
    """How far the interval reaches on one side; a bootstrap interval can lie beside its mean."""
    end = score.low if side < 0 else score.high
    return 0.0 if end is None else max(0.0, side * (end - score.mean))


def _task_axis(names: Sequence[str]) -> dict[str, Any]:
    order = [label(name) for name in names]
    axis = {"type": "category", "categoryorder": "array", "categoryarray": order, "range": [len(order) - 0.5, -0.5], "dtick": 1}
    return {"yaxis": axis | {"automargin": True, "tickfont": {"size": 10}, "gridcolor": "#f4f4f4"}}


def heat_map(names: Sequence[str], weights: RouterWeights, groups: Mapping[str, int]) -> Figure:
    """Tasks and experts, with menus for the block and for the order of the tasks; a dot marks the expert of a task's group."""
    names = [name for name in names if name in weights.by_task]
    stacked = np.array([weights.by_task[name] for name in names])  # (tasks, L, E)
    maps = {"all blocks": stacked.mean(1)}
    if stacked.size <= _MOST_NUMBERS:
        maps |= {f"block {i + 1}": stacked[:, i] for i in range(stacked.shape[1])}
    levels = {name: [shorts(row) for row in found] for name, found in maps.items()}
    heat = {"type": "heatmap", "y": [label(name) for name in names], "z": levels["all blocks"], "zmin": 0, "zmax": 1}
    bar = {"title": {"text": "weight"}, "thickness": 12, "lenmode": "pixels", "len": 150, "y": 1, "yanchor": "top"}
    heat |= {"colorscale": "Cividis", "colorbar": bar}
    heat["hovertemplate"] = "%{y}<br>expert %{x}: %{z:.3f}<extra></extra>"
    marked = [name for name in names if name in groups]
    own: dict[str, Any] = {"type": "scatter", "mode": "markers"}
    own |= {"x": [groups[name] for name in marked], "y": [label(name) for name in marked]}
    own |= {"marker": {"color": "#D55E00", "size": 6, "line": {"color": "#fff", "width": 1}}, "hoverinfo": "skip"}
    layout = _task_axis(names) | {"updatemenus": _menus(names, levels, groups), "showlegend": False}
    n_experts = stacked.shape[2]
    axis = {"title": {"text": "expert"}, "side": "top", "range": [-0.5, n_experts - 0.5], "dtick": -(-n_experts // 20)}
    layout["xaxis"] = axis | {"tickangle": 0, "tickfont": {"size": 10}, "showgrid": False, "zeroline": False}
    layout["margin"] = {"l": 20, "r": 16, "t": 110, "b": 20}
    return {"data": [heat, own], "layout": layout}


def _menus(names: Sequence[str], levels: Mapping[str, Any], groups: Mapping[str, int]) -> list[dict[str, Any]]:
    """The two menus of the heat map: one chooses the block, the other how tasks are ordered."""
    blocks: list[dict[str, Any]] = [
        {"label": name, "method": "restyle", "args": [{"z": [of]}, [0]]} for name, of in levels.items()
    ]
    sorted_ = {"by domain": list(names), "by group": sorted(names, key=lambda name: groups.get(name, len(names)))}
    orders: list[dict[str, Any]] = [
        {"label": text, "method": "relayout", "args": [{"yaxis.categoryarray": [label(name) for name in order]}]}
        for text, order in sorted_.items()
    ]
    return [_menu(blocks, 0.0)] * (len(blocks) > 1) + [_menu(orders, 1.0)] * bool(groups)


def _menu(buttons: Sequence[dict[str, Any]], x: float) -> dict[str, Any]:
    place = {"x": x, "xanchor": "right" if x else "left", "y": 1, "yanchor": "bottom", "pad": {"b": 44}, "font": {"size": 11}}
    return {"type": "dropdown", "direction": "down", "buttons": list(buttons), "showactive": True, **place}
