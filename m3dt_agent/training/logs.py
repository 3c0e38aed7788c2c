"""What a run reports: a CSV file, and a progress bar on a terminal. Trackers are told by tracking.py.

    <bank>/logs/<stage>.csv              step,expert,loss,lr,grad_norm,conflict,experts_kept,seconds

Stage 2 writes one row per logged step and expert, with the expert's index in the bank; in stages 1 and 3 `expert` is empty. A
resumed run first drops its rows after the checkpoint from which it continues, so that no step appears twice.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from ..config import STAGES, Stage
from ..system.disk import disk_space_errors, own_path, path_errors, write_file
from ..system.machine import is_quiet, shows_progress

COLUMNS = ("step", "expert", "loss", "lr", "grad_norm", "conflict", "experts_kept", "seconds")
LogRow = dict[str, str]
"""A row of a log, by column, as text."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One report of a run: means over the steps since the last one.

    losses, grad_norms: (K,), one per expert in `experts` (stage 2), or K = 1 with `experts` empty. conflict: smoothed gradient
    conflict as last measured, or None. seconds: spent in training steps, including those of a resumed run's earlier processes.
    experts_kept: the mean share of its experts that a block used for a window; None if it uses all for every window.
    """

    stage: Stage
    step: int
    steps: int
    experts: tuple[int, ...]
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    learning_rate: float
    conflict: float | None
    seconds: float
    experts_kept: float | None = None

    @property
    def loss(self) -> float:
        """Mean over the experts."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def grad_norm(self) -> float:
        """Mean over the experts, before clipping."""
        return math.fsum(self.grad_norms) / len(self.grad_norms)


OnLog = Callable[[LogRecord], None]


def log_file(bank: Path, stage: Stage) -> Path:
    """The CSV log of a bank's stage.

    Raises:
        PathError: logs/ or the file is a symbolic link, which may lead out of the bank.
    """
    return own_path(bank, f"logs/{stage}.csv")


def announce(message: str, progress: bool | None) -> None:
    """Prints a message on stderr, unless `progress` is False or it is None and `m3dt --quiet` was asked for."""
    if progress or (progress is None and not is_quiet()):
        tqdm.write(message, file=sys.stderr)


class RunLog:
    """The open log of one run, from `step` on; a context manager.

    Raises:
        DiskSpaceError: no room. PathError: nothing can be written there.
    """

    def __init__(
        self,
        bank: Path,
        run: str,
        stage: Stage,
        *,
        experts: tuple[int, ...],
        step: int,
        steps: int,
        progress: bool | None,
    ) -> None:
        self._path = log_file(bank, stage)
        self._experts = [str(e) for e in experts] or [""]
        with path_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_rows(self._path, set(self._experts), step)
            self._file: TextIO = self._path.open("a", newline="")
        hidden = not shows_progress(progress)
        self._bar = tqdm(total=steps, initial=step, desc=run, unit="step", disable=hidden, dynamic_ncols=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        self._file.close()

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        self._bar.update()

    def write(self, record: LogRecord) -> None:
        """Writes a report."""
        conflict, kept = ("" if value is None else repr(value) for value in (record.conflict, record.experts_kept))
        rows = [
            (record.step, expert, repr(loss), repr(record.learning_rate), repr(norm), conflict, kept, f"{record.seconds:.3f}")
            for expert, loss, norm in zip(self._experts, record.losses, record.grad_norms, strict=True)
        ]
        with disk_space_errors(self._path):
            csv.writer(self._file, lineterminator="\n").writerows(rows)
            self._file.flush()
        self._bar.set_postfix(loss=f"{record.loss:.4f}", refresh=False)

    def flush(self) -> None:
        """Forces the rows to disk, so that no checkpoint is there before its rows."""
        os.fsync(self._file.fileno())


def read_log(path: Path) -> list[LogRow]:
    """The rows of a log, in the order in which they were written; a row that a kill cut short is left out.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    header = lines[0] if lines else []
    rows = (line for line in lines[1:] if len(line) == len(header) and line[0].isdecimal())
    return [dict(zip(header, row, strict=True)) for row in rows]


def mean_losses(path: Path) -> dict[int, float]:
    """Step → training loss from a log, mean over the experts, in the order of steps.

    Raises:
        FileNotFoundError: there is no such file.
    """
    rows = sorted((int(row["step"]), row["expert"], float(row["loss"])) for row in read_log(path))
    losses: dict[int, list[float]] = {}
    for step, _, loss in rows:
        losses.setdefault(step, []).append(loss)
    return {step: fmean(found) for step, found in losses.items()}


def learning_curves(bank: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Stage → (steps, training loss) from the logs of a bank whose stages are all trained; in stage 2 mean over the experts.

    Raises:
        FileNotFoundError: a stage has no log.
    """
    losses = {stage: mean_losses(log_file(bank, stage)) for stage in STAGES}
    return {stage: (list(of), list(of.values())) for stage, of in losses.items()}


def add_rows(path: Path, rows: Sequence[LogRow]) -> None:
    """Adds rows that were logged elsewhere; they replace earlier rows of the same experts."""
    experts = {row["expert"] for row in rows}
    _write_rows(path, [*(row for row in _rows_so_far(path) if row["expert"] not in experts), *rows])


def _drop_rows(path: Path, experts: set[str], step: int) -> None:
    """Keeps the header, the rows of other runs, and this run's rows up to `step`."""
    _write_rows(path, [row for row in _rows_so_far(path) if row["expert"] not in experts or int(row["step"]) <= step])


def _rows_so_far(path: Path) -> list[LogRow]:
    return read_log(path) if path.exists() else []


def _write_rows(path: Path, rows: Sequence[LogRow]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *([row.get(name, "") for name in COLUMNS] for row in rows)])
    write_file(path, text.getvalue())
