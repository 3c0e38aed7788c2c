"""`Growth`: tasks that a bank got after it was trained. One entry of `grown` in bank.json, with files of its own.

    grown/000-statistics.safetensors, grown/000-prompts.safetensors     of the new tasks
    experts/016.safetensors                                             a new expert, numbered after the older ones

The files from before stay as they are, byte for byte, and the router knows nothing of the new experts: which expert acts on a
task is a fact of the task. So what the bank did before, it does still, and without the new files and the entry it is as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.checks import is_integer
from ..errors import ConfigError

MOST = 1000
"""Growths of a bank, and its experts: three digits in the names of their files."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Tasks that came together, and who acts on them.

    number: in the names of its files. groups: task → the number of its expert, after those of before. training: the {"config",
    "threads", "data"} that its experts are trained with; empty before that.

    Raises:
        ConfigError: numbers or names that no growth has.
    """

    number: int
    tasks: tuple[str, ...]
    groups: dict[str, int]
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.number < MOST:
            raise ConfigError(f"number must be in 0 … {MOST - 1}; got {self.number!r:.100}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError("it must name at least one task, and none twice")
        if set(self.groups) != set(self.tasks):
            raise ConfigError(f"groups must cover its tasks; they differ in {sorted(set(self.groups) ^ set(self.tasks))}")
        if wrong := {task: e for task, e in self.groups.items() if not 0 <= e < MOST}:
            raise ConfigError(f"groups must name experts 0 … {MOST - 1}; got {wrong!r:.100}")

    @property
    def experts(self) -> tuple[int, ...]:
        """The numbers of its experts, ascending."""
        return tuple(sorted(set(self.groups.values())))

    @property
    def statistics_file(self) -> str:
        """The name of the file with its tasks' statistics."""
        return f"grown/{self.number:03d}-statistics.safetensors"

    @property
    def prompts_file(self) -> str:
        """The name of the file with its tasks' prompts."""
        return f"grown/{self.number:03d}-prompts.safetensors"

    def members(self, expert: int) -> tuple[str, ...]:
        """The tasks of one of its experts."""
        return tuple(task for task in self.tasks if self.groups[task] == expert)


def new_growth(grown: Sequence[Growth], tasks: Sequence[str], n_experts: int, older: int) -> Growth:
    """A growth after those of `grown`: `tasks` are split over its experts in their order, as equally as can be.

    n_experts: of this growth. older: how many experts the bank was made with.

    Raises:
        ConfigError: more experts than tasks, or more of either than a bank can have.
    """
    if not is_integer(n_experts) or not 1 <= n_experts <= len(tasks):
        raise ConfigError(f"experts must be in 1 … {len(tasks)}, at least one task for each; got {n_experts!r}")
    first = max((older, *(expert + 1 for growth in grown for expert in growth.experts)))
    number = max((0, *(growth.number + 1 for growth in grown)))
    return Growth(number, tuple(tasks), {task: first + i * n_experts // len(tasks) for i, task in enumerate(tasks)})


def check_growths(grown: Iterable[Growth], tasks: Iterable[str], older: int) -> None:
    """Checks that no growth takes a task, number or expert of an earlier one or of the bank that grew.

    Raises:
        ConfigError: one does; the message names it.
    """
    names, number, expert = set(tasks), -1, older - 1
    for growth in grown:
        where = f"growth {growth.number}"
        if growth.number <= number:
            raise ConfigError(f"{where} comes after growth {number}; their numbers must ascend")
        if twice := sorted(names & set(growth.tasks)):
            raise ConfigError(f"{where} has the tasks {', '.join(twice)}, which are in the bank already")
        if growth.experts[0] <= expert:
            raise ConfigError(f"{where} has expert {growth.experts[0]}; its experts must be numbered after {expert}")
        names, number, expert = names | set(growth.tasks), growth.number, growth.experts[-1]
