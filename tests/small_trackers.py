"""Trackers of two kinds, for the tests: one writes down what it is told, one raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3dt_agent.training import TrackedRun


class Notebook:
    """A tracker that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def start(self, run: TrackedRun) -> None:
        self.told.append(("start", run))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.told.append(("log", (dict(values), step)))

    def finish(self, results: Mapping[str, str]) -> None:
        self.told.append(("finish", dict(results)))

    def of(self, what: str) -> list[Any]:
        return [told for kind, told in self.told if kind == what]


class Broken:
    """A tracker that raises at one of its calls, and counts them."""

    def __init__(self, at: str, error: type[BaseException] = RuntimeError) -> None:
        self.at, self.error, self.calls = at, error, 0

    def _call(self, name: str) -> None:
        self.calls += 1
        if name == self.at:
            raise self.error("out of\n  order")

    def start(self, run: TrackedRun) -> None:
        self._call("start")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._call("log")

    def finish(self, results: Mapping[str, str]) -> None:
        self._call("finish")
