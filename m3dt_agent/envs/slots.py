"""Environments of different tasks side by side in one process; what a worker runs, and what runs when there is no worker.

    tasks            [walker-run, reach, ant-dir-3]            n = 3 slots
    observations     (n, 39) float32      walker-run: 24 numbers and 15 zeros, …
    actions          (n, 8) float32       walker-run: the first 6 are used

A slot is active from its reset to the end of its episode, then frozen: last observation, reward 0, `terminated` and `truncated`
as they were at the end. Nothing resets by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..tasks import MAX_OBS_DIM, TaskSpec
from .wrappers import StopOnSuccess


@dataclass(frozen=True, slots=True)
class SlotStates:
    """What n slots look like after a reset or a step."""

    observations: NDArray[np.float32]  # (n, 39), zero-padded
    rewards: NDArray[np.float64]  # (n,)
    terminated: NDArray[np.bool_]  # (n,)
    truncated: NDArray[np.bool_]  # (n,)
    success: NDArray[np.bool_]  # (n,), latched; False for tasks that cannot succeed
    active: NDArray[np.bool_]  # (n,)

    @classmethod
    def empty(cls, n: int) -> SlotStates:
        """n slots that were never reset."""
        flags = [np.zeros(n, np.bool_) for _ in range(4)]
        return cls(np.zeros((n, MAX_OBS_DIM), np.float32), np.zeros(n), *flags)

    def put(self, slots: NDArray[np.intp], other: SlotStates) -> None:
        """Overwrites the given slots with those of `other`, in order."""
        for field in self.__slots__:
            getattr(self, field)[slots] = getattr(other, field)

    def copy(self) -> SlotStates:
        """The same states in arrays of their own."""
        return SlotStates(*(getattr(self, field).copy() for field in self.__slots__))


class Slots:
    """One environment per task, made through `gymnasium.make`; `states` is updated in place by `reset` and `step`."""

    def __init__(self, tasks: Sequence[TaskSpec], stop_on_success: bool) -> None:
        self.tasks = tuple(tasks)
        self.states = SlotStates.empty(len(self.tasks))
        self._envs = [self._make(task, stop_on_success) for task in self.tasks]

    @staticmethod
    def _make(task: TaskSpec, stop_on_success: bool) -> gym.Env[NDArray[np.float32], NDArray[np.float32]]:
        env = gym.make(task.env_id, disable_env_checker=True)
        return StopOnSuccess(env) if stop_on_success else env

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int | None]) -> SlotStates:
        """Starts an episode in each slot of `mask` (n,); `seeds` (n) may hold None."""
        states = self.states
        for i in np.flatnonzero(mask).tolist():
            observation, info = self._envs[i].reset(seed=seeds[i])
            states.observations[i, : observation.size] = observation
            states.success[i] = info.get("success", False)
        states.rewards[mask] = 0.0
        states.terminated[mask] = states.truncated[mask] = False
        states.active[mask] = True
        return states

    def step(self, actions: NDArray[np.float32]) -> SlotStates:
        """One agent step in each active slot; `actions` (n, 8)."""
        states = self.states
        states.rewards[:] = 0.0
        for i in np.flatnonzero(states.active).tolist():
            action = actions[i, : self.tasks[i].act_dim]
            observation, states.rewards[i], terminated, truncated, info = self._envs[i].step(action)
            states.observations[i, : observation.size] = observation
            states.success[i] = info.get("success", False)
            states.terminated[i], states.truncated[i] = terminated, truncated
            states.active[i] = not (terminated or truncated)
        return states

    def close(self) -> None:
        """Closes every environment."""
        for env in self._envs:
            env.close()
