"""What an experiment is: arms (methods with settings) that run on the same task sets and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from . import task_sets

PUBLISHED_SEEDS = (0, 1, 2)
"""Task-set seeds and training seeds of the paper. It pairs them: training seed s uses draw s of a task set."""

Budget = Literal["published", "equal-flop", "equal-windows"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One method of an experiment.

    settings: what differs from the method's published settings, in the paper's numbers. equal_parameters: choose the width that
    gives as many parameters as M3DT on the same task set (Prompt-DT only). budget: train for the "published" steps, or for as
    many as give M3DT's training FLOP or windows on the same task set (Prompt-DT, and for FLOP its wide variant).
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    equal_parameters: bool = False
    budget: Budget = "published"


@dataclass(frozen=True, slots=True)
class Experiment:
    """The models of one table, figure or question.

    source: its place in the paper, or "ours". contrast: the two methods whose difference answers the experiment's question;
    they are named before anything runs. note: what is known of the experiment, and from where. crossed: combine every task-set
    seed with every training seed; otherwise the first with the first, the second with the second, and so on. condition: of the
    data, see `runs.data`.
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
        """The methods of its arms, each once."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def published(self) -> bool:
        """Whether all its task sets are published sets or single tasks. Only such an experiment may use held-out tasks."""
        return all(name in task_sets.PUBLISHED_SETS or name.startswith("only-") for name in self.task_sets)

    @property
    def seeds(self) -> tuple[tuple[int, int], ...]:
        """The (task-set seed, training seed) of every run."""
        if self.crossed:
            return tuple((a, b) for a in self.task_set_seeds for b in self.training_seeds)
        return tuple(zip(self.task_set_seeds, self.training_seeds, strict=True))


def arms(methods: Iterable[str], variations: Sequence[Mapping[str, Any]] = ({},)) -> tuple[Arm, ...]:
    """Every method in every variation of its settings."""
    return tuple(Arm(method, variation) for method in methods for variation in variations)
