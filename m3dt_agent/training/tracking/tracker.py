"""Tells trackers how training goes, beside the CSV log: TensorBoard, Weights & Biases, Trackio, or one of your own.

    fit_stage ─► runs.py ─► Guarded: a queue and a thread for each tracker ─► Tracker: start, log, log, …, finish

A tracker only watches: it gets plain numbers, its errors are caught, and nobody waits for it except briefly when a run ends.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...config.checks import require_instance
from ...errors import M3DTError
from ..logs import announce

WAITING = 10_000
"""Reports that may wait for a tracker. One that falls further behind is left out."""
FINISH_SECONDS = 60.0
"""How long the end of a run waits for a tracker to write or send what it has got."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run, as trackers are told of it.

    name: backbone, experts-000-003, router, evaluation. experiment: what belongs together has the same; the folder's name of a
    bank and a random part. folder: where a tracker may write files of its own; it need not exist. config: plain values by name,
    with neither paths nor tokens.
    """

    name: str
    experiment: str
    folder: Path
    config: Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
    """Follows runs, one after the other. It may raise anything at any time: then it is left out, and training goes on.

    All calls come from one thread per run, which is not the one that trains.
    """

    def start(self, run: TrackedRun) -> None:
        """A run begins, or continues after an interruption; then its first reports may be ones that came before."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Values by name, such as `backbone/loss`, at a step of training."""

    def finish(self, results: Mapping[str, str]) -> None:
        """The run is over. results: `bank`, the content hash of the bank as it is now."""


class Guarded:
    """A `Tracker` that can neither stop nor delay the caller. The first thing that goes wrong is said, and was the last.

    Args:
        tracker: called on a thread of its own for each run.
        progress: whether that is said, as `fit_stage` takes it.
    """

    def __init__(self, tracker: Tracker, progress: bool | None = None) -> None:
        require_instance("a tracker", tracker, Tracker)
        self._tracker, self._progress, self._lost = tracker, progress, False
        self._calls: queue.Queue[Callable[[], None] | None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(getattr(self._tracker, "name", type(self._tracker).__name__))

    def start(self, run: TrackedRun) -> None:
        """Begins a run, unless the tracker was given up."""
        if not self._lost:
            self._calls = queue.Queue(WAITING)
            self._thread = threading.Thread(target=self._serve, args=(self._calls,), name=f"tracker {self.name}", daemon=True)
            self._thread.start()
            self._tell(functools.partial(self._tracker.start, run))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Puts a report in the queue."""
        self._tell(functools.partial(self._tracker.log, values, step))

    def finish(self, results: Mapping[str, str]) -> None:
        """Ends the run and waits for the tracker, but not long."""
        self._tell(functools.partial(self._tracker.finish, results))
        self._tell(None)
        if self._thread is not None and not self._lost:
            self._thread.join(FINISH_SECONDS)
            if self._thread.is_alive():
                self._give_up(f"it did not finish within {FINISH_SECONDS:.0f} s")
        self._calls = self._thread = None

    def _tell(self, call: Callable[[], None] | None) -> None:
        if self._calls is not None and not self._lost:
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._give_up(f"it is too slow, {WAITING:,} reports wait for it")

    def _serve(self, calls: queue.Queue[Callable[[], None] | None]) -> None:
        while not self._lost and (call := calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # a tracker that calls exit() does not end training either
                self._give_up(f"{error}" if isinstance(error, M3DTError) else f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        if not self._lost:
            self._lost = True
            announce(f"tracker {self.name} is left out from here on, training goes on: {' '.join(why.split())}", self._progress)
