"""What a slot acts under: one task's prompt, statistics and target return, as `M3DTAgent.reset` fixes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.prompts import Prompt
from ..data.stats import TaskStatistics
from ..errors import ConfigError, InvalidValueError, StageError
from ..tasks import TaskSpec, lookup
from .inputs import LARGEST, finite_number

_UNSEEN = "an unseen task"


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What `reset` fixes for a slot. target_return: undiscounted and unscaled."""

    name: str
    obs_dim: int
    act_dim: int
    prompt: Prompt
    statistics: TaskStatistics
    target_return: float


@dataclass(frozen=True, slots=True)
class KnownTasks:
    """The tasks of an agent, with their prompts (best first) and statistics by task name."""

    tasks: Sequence[TaskSpec]
    prompts: Mapping[str, tuple[Prompt, ...]]
    statistics: Mapping[str, TaskStatistics]

    def requested(
        self,
        task: str | TaskSpec | Sequence[str | TaskSpec] | None,
        prompt: Prompt | None,
        statistics: TaskStatistics | None,
        target_return: float | None,
    ) -> Condition | list[Condition]:
        """What `M3DTAgent.reset` was asked for: one condition for any number of slots, or a list with one per slot.

        Raises:
            ConfigError: both or neither of task and prompt, a prompt without statistics, an empty list, or something else.
            StageError: a task by name before any stage was fitted. UnknownTaskError: a task the agent does not have.
            InvalidValueError: a target return that is not finite, or not once it is divided by the task's return scale.
        """
        if (task is None) == (prompt is None) or (prompt is None) != (statistics is None):
            raise ConfigError(
                "reset takes either task=..., or prompt=... and statistics=... for a task the bank has never seen"
            )
        if task is None:
            if not isinstance(prompt, Prompt) or not isinstance(statistics, TaskStatistics):
                kinds = f"{type(prompt).__name__} and {type(statistics).__name__}"
                raise ConfigError(f"prompt and statistics must be a Prompt and its TaskStatistics; got {kinds}")
            return _unseen(prompt, statistics, target_return)
        if isinstance(task, str | TaskSpec):
            return self._condition(_name(task), target_return)
        names = _names(task)
        if not names:
            raise ConfigError("reset needs at least one task; got an empty list")
        by_name = {name: self._condition(name, target_return) for name in dict.fromkeys(names)}
        return [by_name[name] for name in names]

    def _condition(self, name: str, target_return: float | None) -> Condition:
        """The condition of one task, with its best prompt."""
        if not self.statistics:
            raise StageError("this agent knows no task yet: fit_stage('backbone', ...) or reset(prompt=..., statistics=...)")
        spec = lookup({spec.name: spec for spec in self.tasks}, name, "task of this agent")
        statistics = self.statistics[name]
        return Condition(
            name=name,
            obs_dim=spec.obs_dim,
            act_dim=spec.act_dim,
            prompt=self.prompts[name][0],
            statistics=statistics,
            target_return=_target(name, statistics, target_return),
        )


def _unseen(prompt: Prompt, statistics: TaskStatistics, target_return: float | None) -> Condition:
    """The condition of a task that the agent does not have; its widths are the prompt's."""
    return Condition(
        name=_UNSEEN,
        obs_dim=prompt.states.shape[1],
        act_dim=prompt.actions.shape[1],
        prompt=prompt,
        statistics=statistics,
        target_return=_target(_UNSEEN, statistics, target_return),
    )


def _target(name: str, statistics: TaskStatistics, asked: float | None) -> float:
    """The target return that was asked for, or the task's own; such that the model can be shown it."""
    target = finite_number("target_return", statistics.target_return if asked is None else asked)
    if abs(target) > LARGEST * statistics.return_scale:
        scale = f"{statistics.return_scale:.3g}, the task's return scale"
        raise InvalidValueError(f"target_return {target:.3g} of {name} is too large for the model: it is divided by {scale}")
    return target


def _name(task: str | TaskSpec) -> str:
    return task.name if isinstance(task, TaskSpec) else task


def _names(tasks: object) -> list[str]:
    """The names of a list of tasks."""
    found = np.atleast_1d(tasks).tolist() if isinstance(tasks, np.ndarray) else tasks
    if not isinstance(found, Sequence) or not all(isinstance(one, str | TaskSpec) for one in found):
        raise ConfigError(f"task must be a task's name, a TaskSpec, or a list with one per slot; got {tasks!r}")
    return [_name(one) for one in found]
