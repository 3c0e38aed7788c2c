"""One padded vector environment over different tasks, with worker processes.

    slot        0           1        2            3         4
    task        walker-run  reach    ant-dir-3    reach     cup-spin
    worker      0           0        1            1         0

Observations are (N, 39) and actions (N, 8), zero-padded; each slot uses its task's own first entries. Nothing resets by itself
(`AutoresetMode.DISABLED`): a slot whose episode is over is frozen, and stepping it is allowed and does nothing, until a reset
names it in `options={"reset_mask": ...}`. So slots with episodes of different lengths, or with different numbers of episodes to
run, step together. A reset may give a slot another task.

`reset` and `step` wait for their result. `reset_async` and `step_async` return at once, and some slots may be sent on while
others still step; `wait` takes the results:

    this process     step_async(A)   act for B   step_async(B)   wait(A)   act for A   step_async(A)   wait(B)   act for B   …
    workers               A A A A A A A A A          B B B B B B B B B          A A A A A A A A A
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..errors import ConfigError, InvalidValueError, M3DTError, ShapeError
from ..machine import usable_cores
from ..tasks import MAX_ACT_DIM, MAX_OBS_DIM, Domain, TaskSpec
from .slots import Slots, SlotStates
from .worker import Worker

_STEP_COST: dict[Domain, float] = {"metaworld": 0.35, "dmcontrol": 0.25, "ant-dir": 0.25, "cheetah-vel": 0.05}
"""Milliseconds per agent step, measured on one core; only their ratios matter, to share slots out evenly."""

Array = NDArray[Any]
StepResult = tuple[NDArray[np.float32], Array, Array, Array, dict[str, Any]]


class MixedTaskVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[np.float32], Array]):
    """One slot per entry of `tasks`, which may repeat.

    Args:
        tasks: the N tasks.
        workers: processes the slots are shared over; 0 runs them in this process, None is one per core (at most N).
        stop_on_success: end an episode on the step that first reports success.

    Raises:
        ConfigError: no tasks, or a negative number of workers.
        M3DTError: a worker died, or an environment in it raised; the message names the worker and its tasks. The vector
            environment is closed then, as it is after Ctrl-C.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # type: ignore[misc]

    def __init__(self, tasks: Sequence[TaskSpec], *, workers: int | None = None, stop_on_success: bool = False) -> None:
        self.closed = True  # until there is something to close
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ConfigError("MixedTaskVectorEnv needs at least one task; got none")
        n_workers = min(usable_cores() if workers is None else workers, len(self.tasks))
        if n_workers < 0:
            raise ConfigError(f"MixedTaskVectorEnv workers must be None or >= 0; got {workers}")
        self.num_envs = len(self.tasks)
        self.single_observation_space = Box(-np.inf, np.inf, (MAX_OBS_DIM,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (MAX_ACT_DIM,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._used = _used_entries(self.tasks)
        self._states = SlotStates.empty(self.num_envs)
        self._shares = share_out(self.tasks, max(n_workers, 1))
        self._workers: list[Worker] = []
        self._pending: deque[tuple[int, NDArray[np.intp]]] = deque()  # workers that owe replies, and for which slots
        self._local = Slots(self.tasks, stop_on_success) if n_workers == 0 else None
        self._started = False
        self.closed = False
        if n_workers:
            self._start_workers(stop_on_success)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode in every slot, or in those of `options["reset_mask"]`, (N,) bool with at least one True.

        Args:
            seed: slot i gets `seed + i`, or entry i of a list (None: the next seed of its own generator).
            options: not changed. `options["tasks"]`, N tasks, is what the slots that are reset run from now on.

        Returns:
            observations (N, 39) float32, and info with "active" (N,) bool and "success" (N,) bool.

        Raises:
            ShapeError: a reset mask that is not (N,) bool, or a list of seeds or tasks that is not N long.
            InvalidValueError: a reset mask without a True, or a negative seed.
        """
        self.reset_async(seed=seed, options=options)
        observations, *_, info = self.wait()
        return observations, info

    def step(self, actions: NDArray[np.float32]) -> StepResult:
        """One agent step in each active slot.

        Args:
            actions: (N, 8); a slot's entries beyond its task's width, and frozen slots' rows, are ignored.

        Returns:
            observations (N, 39) float32, rewards (N,) float64, terminated (N,) bool, truncated (N,) bool, info as from `reset`.

        Raises:
            ShapeError: `actions` is not (N, 8).
            InvalidValueError: a NaN or an infinity that would be used; the message names slot and task.
            M3DTError: nothing was ever reset.
        """
        self.step_async(actions)
        return self.wait()

    def reset_async(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        """Begins what `reset` does; `wait` ends it. Arguments and errors are those of `reset`.

        Raises:
            M3DTError: a slot to reset is busy with what nobody waited for.
        """
        mask, seeds, tasks = self._reset_mask(options), self._seeds(seed), self._reset_tasks(options)
        self._check_ready(mask)
        self.tasks = tuple(tasks[i] if mask[i] else task for i, task in enumerate(self.tasks))
        self._used = _used_entries(self.tasks)
        self._send("reset", mask, lambda slots: ([seeds[i] for i in slots], [tasks[i] for i in slots]))
        self._started = True

    def step_async(self, actions: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> None:
        """Begins what `step` does, for the slots of `mask` (N,) bool (None: all); `wait` ends it. Errors are those of `step`.

        Raises:
            M3DTError: a slot to step is busy with what nobody waited for.
        """
        mask = np.ones(self.num_envs, np.bool_) if mask is None else mask
        if not self._started:
            raise M3DTError("no slot of this MixedTaskVectorEnv was ever reset; call reset() before step()")
        self._check_ready(mask)
        acting = mask & self._states.active
        actions = self._checked(actions, acting)
        self._states.rewards[mask] = 0.0
        self._send("step", acting, lambda slots: (actions[slots],))

    def wait(self, mask: NDArray[np.bool_] | None = None) -> StepResult:
        """Waits until no slot of `mask` (N,) bool (None: all) is busy.

        Returns:
            As `step`; the entries of slots that are still busy are those of before.
        """
        self._check_open()
        while any(mask is None or mask[slots].any() for _, slots in self._pending):
            with self._closing_on_error():
                worker, slots = self._pending.popleft()
                self._states.put(slots, self._workers[worker].receive())
        states = self._states.copy()
        info = {"active": states.active, "success": states.success}
        return states.observations, states.rewards, states.terminated, states.truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the workers (called by `close`)."""
        if self._local is not None:
            self._local.close()
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

    def _start_workers(self, stop_on_success: bool) -> None:
        with self._closing_on_error():
            for number, share in enumerate(self._shares):
                self._workers.append(Worker(number, [self.tasks[i] for i in share], stop_on_success))
            for worker in self._workers:
                worker.receive()

    def _send(self, command: str, mask: NDArray[np.bool_], arguments: Callable[[list[int]], tuple[Any, ...]]) -> None:
        """Has the workers do `command` with the slots of `mask`; `arguments` gives those for some slots."""
        for number, share in enumerate(self._shares):
            places = np.flatnonzero(mask[share])  # as the worker counts its slots
            slots = share[places]
            if not slots.size:
                continue
            given = arguments(slots.tolist())
            if self._local is not None:
                self._states.put(slots, getattr(self._local, command)(places, *given))
                continue
            with self._closing_on_error():
                for place, slot in zip(places.tolist(), slots.tolist(), strict=True):
                    self._workers[number].tasks[place] = self.tasks[slot]
                self._workers[number].send(command, places, *given)
                self._pending.append((number, slots))

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # Ctrl-C too: replies nobody has read would be taken for the next command's
            self.close()
            raise

    def _check_ready(self, mask: NDArray[np.bool_]) -> None:
        self._check_open()
        busy = [slot for _, slots in self._pending for slot in slots[mask[slots]].tolist()]
        if busy:
            raise M3DTError(f"slots {sorted(busy)} of this MixedTaskVectorEnv are busy; call wait() first")

    def _check_open(self) -> None:
        if self.closed:
            raise M3DTError("this MixedTaskVectorEnv is closed")

    def _checked(self, actions: NDArray[np.float32], acting: NDArray[np.bool_]) -> NDArray[np.float32]:
        actions = np.asarray(actions, np.float32)
        if actions.shape != self._used.shape:
            raise ShapeError(f"actions must have shape {self._used.shape}; got {actions.shape}")
        bad = ~np.isfinite(actions) & self._used & acting[:, None]
        if bad.any():
            slot = int(np.flatnonzero(bad.any(axis=1))[0])
            raise InvalidValueError(
                f"slot {slot} ({self.tasks[slot].name}): an action must be finite; got {actions[slot].tolist()}"
            )
        return actions

    def _reset_mask(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ShapeError(f"reset_mask must be a bool array of shape ({self.num_envs},); got {got}")
        if not mask.any():
            raise InvalidValueError("reset_mask must hold at least one True; got none")
        return mask

    def _reset_tasks(self, options: dict[str, Any] | None) -> Sequence[TaskSpec]:
        tasks: Sequence[TaskSpec] = (options or {}).get("tasks", self.tasks)
        if len(tasks) != self.num_envs:
            raise ShapeError(f"a list of tasks must have one entry per slot, {self.num_envs}; got {len(tasks)}")
        return tasks

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != self.num_envs:
            raise ShapeError(f"a list of seeds must have one entry per slot, {self.num_envs}; got {len(seeds)}")
        if any(s is not None and s < 0 for s in seeds):
            raise InvalidValueError(f"seeds must be >= 0; got {seeds}")
        return [None if s is None else int(s) for s in seeds]


def _used_entries(tasks: Sequence[TaskSpec]) -> NDArray[np.bool_]:
    """Which of its action's entries each slot's task has, (N, 8)."""
    used: NDArray[np.bool_] = np.arange(MAX_ACT_DIM) < np.array([[task.act_dim] for task in tasks])
    return used


def share_out(tasks: Sequence[TaskSpec], workers: int) -> list[NDArray[np.intp]]:
    """Slots for each worker, by cost per step: each slot, dearest first, goes to the worker with the least to do."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for slot in sorted(range(len(tasks)), key=lambda i: -_STEP_COST[tasks[i].domain]) if workers else ():
        worker = load.index(min(load))
        shares[worker].append(slot)
        load[worker] += _STEP_COST[tasks[slot].domain]
    return [np.array(sorted(share), np.intp) for share in shares]
