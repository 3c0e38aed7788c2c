"""Policies without training: controls to compare every score with, and the behavior policies of the demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..records import FINAL, TaskIdUse
from .base import Method, Outcome, Work


@dataclass(frozen=True, slots=True)
class Level:
    """Acts with a behavior policy of each task."""

    level: str
    task_id: TaskIdUse = "none"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        return Outcome(self.level)


METHODS: Mapping[str, Method] = {"random": Level("random"), "zero": Level("zero"), "behavior": Level("expert", "acting")}
