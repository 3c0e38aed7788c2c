"""What an experiment is: arms (methods with settings) that run on the same task sets and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from . import task_sets

PUBLISHED_SEEDS = (0, 1, 2)
"""The paper pairs them: its seed s trains on draw s of a task set."""

Budget = Literal["published", "equal-flop", "equal-windows"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One method of an experiment. settings: what differs from its published ones, in the paper's numbers.

    equal_parameters: as wide as makes its parameters those of M3DT on the same task set. budget: "published" steps, or as many
    as make its training FLOP or its windows those of M3DT there. Both are for Prompt-DT, the budget for the wide one, too.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    equal_parameters: bool = False
    budget: Budget = "published"


@dataclass(frozen=True, slots=True)
class Experiment:
    """What belongs to one table, figure or question.

    source: where in the paper, or "ours". contrast: the two methods whose difference is the experiment's question, named before
    anything runs. crossed: every task-set seed with every training seed; else the first with the first, and so on. note: what
    is known of it and from where.
    """

    title: str
    source: str
    arms: tuple[Arm, ...]
    task_sets: tuple[str, ...]
    contrast: tuple[str, str] | None
    note: str = ""
    task_set_seeds: tuple[int, ...] = PUBLISHED_SEEDS
    training_seeds: tuple[int, ...] = PUBLISHED_SEEDS
    crossed: bool = False
    condition: str = "mixture"

    @property
    def methods(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def published(self) -> bool:
        """Whether its tasks are the paper's: published sets, or single tasks; only then may they be held-out ones."""
        return all(name in task_sets.PUBLISHED_SETS or name.startswith("only-") for name in self.task_sets)

    @property
    def seeds(self) -> tuple[tuple[int, int], ...]:
        """(task-set seed, training seed) of every run."""
        if self.crossed:
            return tuple((a, b) for a in self.task_set_seeds for b in self.training_seeds)
        return tuple(zip(self.task_set_seeds, self.training_seeds, strict=True))


def arms(methods: Iterable[str], variations: Sequence[Mapping[str, Any]] = ({},)) -> tuple[Arm, ...]:
    """Every method in every variation of its settings."""
    return tuple(Arm(method, variation) for method in methods for variation in variations)
