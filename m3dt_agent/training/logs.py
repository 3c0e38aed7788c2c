"""What a run reports: CSV always, TensorBoard where it is installed, a progress bar on a terminal, and the caller's `on_log`.

    <bank>/logs/<stage>.csv              step,expert,loss,lr,grad_norm,conflict,experts_kept,seconds
    <bank>/logs/tensorboard/<run>/

Stage 2 writes one row per expert (its index in the bank) and logged step; in stages 1 and 3 `expert` is empty. A resumed run
first drops its rows after the checkpoint it continues from, so that no step is there twice.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ..config import STAGES, Stage
from ..disk import disk_space_errors, write_file

COLUMNS = ("step", "expert", "loss", "lr", "grad_norm", "conflict", "experts_kept", "seconds")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One report of a run: means over the steps since the last one.

    losses, grad_norms: (K,), one per expert in `experts` (stage 2), or K = 1 with `experts` empty. conflict: smoothed gradient
    conflict as last measured, or None. seconds: spent in training steps, earlier processes of a resumed run included.
    experts_kept: the share of experts that windows used in a block, None where all use all.
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


def announce(message: str, progress: bool | None) -> None:
    """Tells the user, on stderr; silent with `progress=False`."""
    if progress is not False:
        tqdm.write(message, file=sys.stderr)


class RunLog:
    """The open logs of one run, from `step` on; a context manager.

    Raises:
        DiskSpaceError: no room.
    """

    def __init__(
        self, bank: Path, run: str, stage: Stage, experts: tuple[int, ...], step: int, steps: int, progress: bool | None
    ) -> None:
        self._path = bank / "logs" / f"{stage}.csv"
        self._experts = [str(e) for e in experts] or [""]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _drop_rows(self._path, set(self._experts), step)
        self._file: TextIO = self._path.open("a", newline="")
        self._tensorboard = _tensorboard(self._path.parent / "tensorboard" / run, step)
        shown = None if progress is None else not progress  # None: only on a terminal
        self._bar = tqdm(total=steps, initial=step, desc=run, unit="step", disable=shown, dynamic_ncols=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def write(self, record: LogRecord) -> None:
        """Writes a report everywhere."""
        conflict, kept = ("" if value is None else repr(value) for value in (record.conflict, record.experts_kept))
        rows = [
            (record.step, expert, repr(loss), repr(record.learning_rate), repr(norm), conflict, kept, f"{record.seconds:.3f}")
            for expert, loss, norm in zip(self._experts, record.losses, record.grad_norms, strict=True)
        ]
        with disk_space_errors(self._path):
            csv.writer(self._file, lineterminator="\n").writerows(rows)
            self._file.flush()
        self._bar.set_postfix(loss=f"{record.loss:.4f}", refresh=False)
        if self._tensorboard is not None:
            self._write_tensorboard(record)

    def flush(self) -> None:
        """Rows up to a checkpoint reach the disk before it does."""
        os.fsync(self._file.fileno())

    def _write_tensorboard(self, record: LogRecord) -> None:
        values = {"loss": record.loss, "grad_norm": record.grad_norm, "learning_rate": record.learning_rate}
        if record.conflict is not None:
            values["conflict"] = record.conflict
        if record.experts_kept is not None:
            values["experts_kept"] = record.experts_kept
        if record.experts:
            values |= {f"loss/expert_{e:03d}": loss for e, loss in zip(record.experts, record.losses, strict=True)}
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{record.stage}/{name}", value, record.step)


def _tensorboard(folder: Path, step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=step + 1)


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a CSV, none if there is no such file; one that a kill cut short is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in list(csv.reader(file))[1:] if len(row) == len(COLUMNS) and row[0].isdecimal()]


def add_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Adds the rows of runs elsewhere, in place of those there were of the same experts."""
    experts = {row[1] for row in rows}
    _write_rows(path, [*(row for row in read_rows(path) if row[1] not in experts), *rows])


def _drop_rows(path: Path, experts: set[str], step: int) -> None:
    """Leaves the header, other runs' rows, and this run's up to `step`."""
    _write_rows(path, [row for row in read_rows(path) if row[1] not in experts or int(row[0]) <= step])


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_file(path, text.getvalue())


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
