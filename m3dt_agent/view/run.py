"""The page of a training: losses, learning rates, gradient norms, conflict and the use of experts over the steps.

<folder>/logs/<stage>.csv                     a bank's, while it is trained or after
<folder>/<cell>/cell.json, rows-1.00.jsonl    a benchmark run: one line per cell, and the logs of the banks in it
"""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import STAGES
from ..errors import DatasetError, M3DTError
from ..scores import read_rows, summarize
from ..system.disk import open_regular, path_errors
from ..system.documents import read_document
from ..training.logs import LogRow, log_file, read_log
from .page import COLOURS, Cell, Column, Figure, Page, label, number, short

STAGE_COLOURS = {"backbone": "#0072B2", "experts": "#E69F00", "router": "#009E73"}
_POINTS = 400
"""Points of a line; of a longer log every k-th row is shown, and the last."""
_LINES = 64
"""Experts with a line of their own."""
_MOST_BYTES = 256 << 20
_MEASURES = {
    "loss": ("training loss", True),
    "lr": ("learning rate", False),
    "grad_norm": ("gradient norm before clipping", True),
    "conflict": ("conflict between the tasks' gradients", False),
    "experts_kept": ("share of its experts that a block uses", False),
}
"""Column of a log → title of its figure, and whether its axis is logarithmic."""
_CELL_BYTES = 64 << 20
_DIGITS = 15  # of a step


def logs_in(folder: Path) -> dict[str, list[LogRow]]:
    """Stage → rows of its log, for the stages that have one. Rows without a step are left out.

    Raises:
        PathError: a log cannot be read, or leads out of the folder. DatasetError: it is no table of text, or too large.
    """
    found = {}
    for stage in STAGES:
        path = log_file(folder, stage)
        with path_errors(path):
            if not path.exists():
                continue
            with open_regular(path):  # a pipe would be waited for
                pass
            if path.stat().st_size > _MOST_BYTES:
                raise DatasetError(f"{path} is larger than any log of a training, {_MOST_BYTES >> 20} MiB")
        try:
            rows = read_log(path)
        except (ValueError, csv.Error) as error:
            raise DatasetError(f"{path} is no log of a training: {error}") from error
        found[stage] = [row for row in rows if row.get("step", "").isdecimal() and len(row["step"]) <= _DIGITS]
    return {stage: rows for stage, rows in found.items() if rows}


def training_section(page: Page, folder: Path, what: str = "", prefix: str = "") -> bool:
    """Adds the learning curves of the bank in `folder`; if any. what: named in the heading. prefix: of figures."""
    logs = logs_in(folder)
    if not logs:
        return False
    page.heading(f"Training{f' of {what}' if what else ''}")
    page.facts({f"stage {stage}": _progress(rows) for stage, rows in logs.items()})
    for column in _MEASURES:
        by_stage = {stage: list(_lines(stage, rows, column)) for stage, rows in logs.items()}
        if any(by_stage.values()):
            page.plot(f"{prefix}{column.replace('_', '')}", _curves(column, by_stage), 320)
    return True


def _progress(rows: Sequence[LogRow]) -> str:
    last = max(int(row["step"]) for row in rows)
    losses = [value for row in rows if int(row["step"]) == last and (value := _value(row, "loss")) is not None]
    seconds = [value for row in rows if (value := _value(row, "seconds")) is not None]
    loss = f", loss {np.mean(losses):.4g}" if losses else ""
    spent = f", {max(seconds):,.0f} s of training steps" if seconds else ""
    experts = {row.get("expert", "") for row in rows} - {""}
    return f"step {last:,}{loss}{spent}" + (f", {len(experts)} experts" if experts else "")


def _value(row: LogRow, column: str) -> float | None:
    """The number in a column of a row; None if there is none, as in logs of older releases or a damaged file."""
    try:
        value = float(row.get(column, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _lines(stage: str, rows: Sequence[LogRow], column: str) -> Iterator[dict[str, Any]]:
    """The lines of one stage: in stage 2 one per expert, thin, and their mean over them."""
    by_expert: dict[str, dict[int, float]] = {}
    for row in rows:
        if (value := _value(row, column)) is not None:
            by_expert.setdefault(row.get("expert", ""), {})[int(row["step"])] = value
    colour = STAGE_COLOURS[stage]
    if len(by_expert) > 1:
        for expert, points in sorted(by_expert.items())[:_LINES]:
            yield _line(points, f"{stage}, expert {expert}", colour, {"width": 1}, opacity=0.35, showlegend=False)
    totals: dict[int, list[float]] = {}
    for points in by_expert.values():
        for step, value in points.items():
            totals.setdefault(step, []).append(value)
    if totals:
        mean = {step: float(np.mean(values)) for step, values in totals.items()}
        yield _line(mean, stage if len(by_expert) < 2 else f"{stage}, mean", colour, {"width": 2.5})


def _line(points: Mapping[int, float], name: str, colour: str, line: dict[str, Any], **more: Any) -> dict[str, Any]:
    steps = sorted(points)
    every = max(1, math.ceil(len(steps) / _POINTS))
    shown = [*steps[:-1:every], steps[-1]]
    return {
        "type": "scatter",
        "mode": "lines" if len(shown) > 1 else "markers",
        "name": label(name),
        "x": shown,
        "y": [short(points[step]) for step in shown],
        "line": {"color": colour, **line},
        **more,
    }


def _curves(column: str, by_stage: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """The stages side by side, since their numbers of steps differ, with one axis for their values."""
    title, logarithmic = _MEASURES[column]
    values = [value for traces in by_stage.values() for trace in traces for value in trace["y"]]
    scale = "log" if logarithmic and all(value is not None and value > 0 for value in values) else "linear"
    shown = {stage: traces for stage, traces in by_stage.items() if traces}
    layout: dict[str, Any] = {
        "title": {"text": f"{title}, by step of the stage"},
        "yaxis": {"type": scale, "exponentformat": "power", "gridcolor": "#eee", "zeroline": False},
        "showlegend": False,
    }
    data = []
    for i, (stage, traces) in enumerate(shown.items()):
        begin, end = i / len(shown), (i + 1) / len(shown)
        axis = {"domain": [begin + 0.02 * (i > 0), end], "title": {"text": stage}, "nticks": 4, "tickangle": 0}
        layout[f"xaxis{i + 1}"] = axis | {"gridcolor": "#eee", "zeroline": False, "anchor": "y"}
        data += [{**trace, "xaxis": f"x{i + 1}"} for trace in traces]
    return {"data": data, "layout": layout}


# -- benchmark runs ------------------------------------------------------------------------------------------------------------


def cells_in(folder: Path) -> list[Path]:
    """The folders of a benchmark run's cells.

    Raises:
        PathError: the folder cannot be read.
    """
    with path_errors(folder):
        places = [*folder.glob("*/cell.json"), *folder.glob("cells/*/cell.json")]
        return sorted(file.parent for file in places if file.is_file())


def run_page(folder: Path, shown_as: str) -> Page:
    """The page of a folder with the logs of a training, or with the cells of a benchmark run. shown_as: its name.

    Raises:
        PathError: a log cannot be read.
    """
    cells = cells_in(folder)
    if not cells:
        page = Page(f"Training {shown_as}", "Learning curves of the stages that have begun; expert by expert in stage 2.")
        if not training_section(page, folder):
            page.note("The logs have no rows yet.")
        return page
    page = Page(f"Benchmark run {shown_as}", "The cells of the run, and the learning curves of the banks that they trained.")
    command = f"python -m benchmarks report {shlex.quote(shown_as)}"
    page.note(f"{command}, in a checkout, compares the methods with intervals and p-values.")
    found = [_read_cell(cell) for cell in cells]
    rows = [(cell.name, _cell_row(cell, values)) for cell, values in zip(cells, found, strict=True)]
    page.table("cells", _COLUMNS, rows, pick=False)
    if traces := [trace for i, values in enumerate(found) if (trace := _cell_curve(values, i)) is not None]:
        x, y = {"title": {"text": "training windows"}}, {"type": "log"}
        layout = {"title": {"text": "training loss"}, "xaxis": x, "yaxis": y, "legend": {"orientation": "h", "y": -0.2}}
        page.plot("cellcurves", {"data": traces, "layout": layout}, 420)
    with path_errors(folder):
        banks = sorted({logs.parent for pattern in ("*/logs", "*/work/logs", "*/work/*/logs") for logs in folder.glob(pattern)})
        banks += sorted(logs.parent for logs in folder.glob("shared/*/logs"))
    for i, bank in enumerate(dict.fromkeys(banks)):
        training_section(page, bank, str(bank.relative_to(folder)), prefix=f"bank{i}")
    return page


_COLUMNS = (
    Column("cell", kind="words"),
    Column("experiment", kind="words"),
    Column("method", kind="words"),
    Column("tasks"),
    Column("training seed"),
    Column("windows", help="training windows that were seen"),
    Column("parameters"),
    Column("score", help="mean normalized score of the final model over its tasks"),
    Column("low", help="lower end of the 95% interval over episodes"),
    Column("high", help="upper end of the 95% interval over episodes"),
)


def _read_cell(cell: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_document(cell / "cell.json", dict[str, Any], M3DTError, max_bytes=_CELL_BYTES)
    except M3DTError as error:
        return {"problem": str(error)}
    return {**_mapping(found.get("facts")), **_mapping(found.get("cell"))}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _cell_row(cell: Path, values: Mapping[str, Any]) -> list[Cell]:
    mean = low = high = None
    try:
        summary = summarize(read_rows(cell / "rows-1.00.jsonl"))
        mean, (low, high) = summary.mean_score, summary.mean_interval
    except M3DTError:
        pass  # not evaluated yet
    tasks = values.get("tasks")
    counts = [len(tasks) if isinstance(tasks, list) else None, *(values.get(name) for name in _COUNTS)]
    return [
        Cell(cell.name),
        Cell(str(values.get("experiment", values.get("problem", "-")))),
        Cell(str(values.get("method", "-"))),
        *(number(count if isinstance(count, int | float) else None, 0) for count in counts),
        *(number(value) for value in (mean, low, high)),
    ]


_COUNTS = ("training_seed", "windows", "parameters")


def _cell_curve(values: Mapping[str, Any], i: int) -> dict[str, Any] | None:
    points = {}
    for pair in values.get("curve") or ():
        match pair:
            case [int(windows), float(loss)] if math.isfinite(loss):
                points[windows] = loss
    if not points:
        return None
    name = f"{values.get('method')}, seed {values.get('training_seed')}"
    return _line(points, name, COLOURS[i % len(COLOURS)], {"width": 1.5})
