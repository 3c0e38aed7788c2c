"""Environments of different tasks side by side in one process: a worker runs them, or the main process if there are no workers.

    tasks            [walker-run, reach, ant-dir-3]            n = 3 slots
    observations     (n, W) float32       W = 39: walker-run has 24 numbers and 15 zeros, …
    actions          (n, A) float32       A = 8: of walker-run's, the first 6 are used

W and A are 39 and 8 for the 160 tasks, and more if a task of one's own is wider.

A slot is active from its reset to the end of its episode; then it is frozen. The caller must step active slots only. No slot is
reset automatically. A reset may give a slot another task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..tasks import MAX_OBS_DIM, TaskSpec
from .make import make_env
from .wrappers import StopOnSuccess


@dataclass(frozen=True, slots=True)
class SlotStates:
    """The states of n slots after a reset or a step."""

    observations: NDArray[np.float32]  # (n, W), zero-padded
    rewards: NDArray[np.float64]  # (n,)
    terminated: NDArray[np.bool_]  # (n,)
    truncated: NDArray[np.bool_]  # (n,)
    success: NDArray[np.bool_]  # (n,), stays True until the reset; False for tasks that have no success
    active: NDArray[np.bool_]  # (n,)

    @classmethod
    def empty(cls, n: int, width: int = MAX_OBS_DIM) -> SlotStates:
        """n slots that were never reset. width: of their observations."""
        flags = [np.zeros(n, np.bool_) for _ in range(4)]
        return cls(np.zeros((n, width), np.float32), np.zeros(n), *flags)

    def take(self, slots: NDArray[np.intp]) -> SlotStates:
        """Copies the states of the given slots, in that order."""
        return SlotStates(*(getattr(self, field)[slots] for field in self.__slots__))

    def put(self, slots: NDArray[np.intp], other: SlotStates) -> None:
        """Overwrites the states of the given slots with those in `other`, in that order."""
        for field in self.__slots__:
            getattr(self, field)[slots] = getattr(other, field)

    def copy(self) -> SlotStates:
        """Copies all states."""
        return SlotStates(*(getattr(self, field).copy() for field in self.__slots__))


class Slots:
    """One environment per task, made by `make_env`. `reset` and `step` act on k of them and return their states.

    width: of the padded observations, W.
    """

    def __init__(self, tasks: Sequence[TaskSpec], stop_on_success: bool, width: int = MAX_OBS_DIM) -> None:
        self._tasks = list(tasks)
        self._stop_on_success = stop_on_success
        self._states = SlotStates.empty(len(self._tasks), width)
        self._envs = [self._make(task) for task in self._tasks]

    def _make(self, task: TaskSpec) -> gym.Env[NDArray[np.float32], NDArray[np.float32]]:
        env = make_env(task)
        return StopOnSuccess(env) if self._stop_on_success else env

    def reset(self, slots: NDArray[np.intp], seeds: Sequence[int | None], tasks: Sequence[TaskSpec]) -> SlotStates:
        """Starts an episode of tasks[j] with seeds[j] in slot slots[j]; a slot whose task changes gets a new environment."""
        states = self._states
        for i, seed, task in zip(slots.tolist(), seeds, tasks, strict=True):
            if task != self._tasks[i]:
                self._replace(i, task)
            observation, info = self._envs[i].reset(seed=seed)
            states.observations[i, : observation.size] = observation
            states.success[i] = info.get("success", False)
        states.rewards[slots] = 0.0
        states.terminated[slots] = states.truncated[slots] = False
        states.active[slots] = True
        return states.take(slots)

    def step(self, slots: NDArray[np.intp], actions: NDArray[np.float32]) -> SlotStates:
        """Takes one agent step in each of `slots` (k,), all of them active, with `actions` (k, A)."""
        states = self._states
        for i, action in zip(slots.tolist(), actions, strict=True):
            observation, states.rewards[i], terminated, truncated, info = self._envs[i].step(action[: self._tasks[i].act_dim])
            states.observations[i, : observation.size] = observation
            states.success[i] = info.get("success", False)
            states.terminated[i], states.truncated[i] = terminated, truncated
            states.active[i] = not (terminated or truncated)
        return states.take(slots)

    def close(self) -> None:
        """Closes every environment."""
        for env in self._envs:
            env.close()

    def _replace(self, i: int, task: TaskSpec) -> None:
        self._envs[i].close()
        self._envs[i], self._tasks[i] = self._make(task), task
        self._states.observations[i] = 0.0
