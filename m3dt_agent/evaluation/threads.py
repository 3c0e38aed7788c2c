"""With how many CPU threads torch decides, chosen by measuring while episodes are played.

Two threads share every product and wait for each other after it. On cores of their own they win time. Where another process
keeps one of the cores busy, each product waits until the system gives the second thread a core, and a decision can take many
times as long as with one thread. Nobody can say beforehand which of the two it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

TRIALS = 3
"""How often each number of threads is tried in turns; the median counts."""
TRY_AGAIN_AFTER = 1000
"""Decisions between two rounds of trials, because other processes come and go."""
_HOPELESS = 4  # a number of threads this many times slower than another is not tried to the end

Result = TypeVar("Result")


class FasterThreads:
    """Runs decisions with one thread, or with as many as torch has when this is made: whichever was faster when last tried.

    It leaves torch with the number that it used last.
    """

    def __init__(self) -> None:
        self._counts = sorted({1, torch.get_num_threads()})
        self._trials: list[int] = []  # numbers of threads still to be tried in this round
        self._seconds: dict[int, list[float]] = {}
        self._left = 0  # decisions until the next round

    def __call__(self, decide: Callable[[], Result]) -> Result:
        """What `decide` returns."""
        if len(self._counts) == 1:
            return decide()
        if self._trials:
            return self._try(self._trials.pop(), decide)
        if self._left:
            self._left -= 1
            return decide()
        self._trials, self._seconds = TRIALS * self._counts, {count: [] for count in self._counts}
        return self._try(self._trials.pop(), decide)

    def _try(self, count: int, decide: Callable[[], Result]) -> Result:
        torch.set_num_threads(count)
        began = time.perf_counter()
        result = decide()
        self._seconds[count].append(time.perf_counter() - began)
        tried = {n: statistics.median(taken) for n, taken in self._seconds.items() if taken}
        self._trials = [n for n in self._trials if n not in tried or tried[n] < _HOPELESS * min(tried.values())]
        if not self._trials:
            torch.set_num_threads(min(tried, key=tried.__getitem__))
            self._left = TRY_AGAIN_AFTER
        return result
