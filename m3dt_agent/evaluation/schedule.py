"""Which slot runs which episode: every slot takes the next one from a `Queue` when its own is over."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode to run."""

    task: TaskSpec
    seed: int


class Queue:
    """The numbers of the episodes that have not begun, and how many slots run each task."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._left: dict[TaskSpec, deque[int]] = {}
        self._slots: Counter[TaskSpec] = Counter()
        for i, episode in enumerate(episodes):
            self._left.setdefault(episode.task, deque()).append(i)

    def take(self, last: TaskSpec | None = None) -> int:
        """The number of the next episode for a slot that ran `last` (None: nothing yet); -1 if no episode is left.

        It is one of the same task if there is one, because another task takes a new environment; else one of the task whose
        slots, including this one, have the most steps to go.
        """
        if last is not None:
            self._slots[last] -= 1
        waiting = [task for task, left in self._left.items() if left]
        if not waiting:
            return -1
        task = last if last in waiting else max(waiting, key=self._steps_to_go)
        self._slots[task] += 1
        return self._left[task].popleft()

    def _steps_to_go(self, task: TaskSpec) -> float:
        return len(self._left[task]) * task.max_episode_steps / (self._slots[task] + 1)
