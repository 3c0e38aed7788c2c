"""What needs no training: the controls that every number is read beside, and the demonstrators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..records import FINAL, TaskIdUse
from .base import Method, Outcome, Work


@dataclass(frozen=True, slots=True)
class Level:
    """A behavior policy of every task."""

    level: str
    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        return Outcome(self.level)


METHODS: Mapping[str, Method] = {"random": Level("random"), "zero": Level("zero"), "behavior": Level("expert", "acting")}
