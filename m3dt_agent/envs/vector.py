"""A vector environment whose slots run different tasks, in worker processes.

    slot        0           1        2            3         4
    task        walker-run  reach    ant-dir-3    reach     cup-spin
    worker      0           0        1            1         0

Observations are (N, W) and actions (N, A), zero-padded; the first entries are the task's own. W and A are 39 and 8, or more if
a task of one's own is wider. No slot is reset automatically
(`AutoresetMode.DISABLED`). A slot whose episode is over is frozen: stepping it is allowed and does nothing, until a reset
selects it with `options={"reset_mask": ...}`. So slots can step together although their episodes differ in length or number. A
reset may give a slot another task.

`reset` and `step` wait for their result. `reset_async` and `step_async` return at once, so that one group of slots can be sent
on while another still steps; `wait` collects the results:

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
from ..system.machine import usable_cores
from ..tasks import TaskSpec, padded_widths
from .slots import Slots, SlotStates
from .worker import Worker

_STEP_COST: dict[str, float] = {"metaworld": 0.35, "dmcontrol": 0.25, "ant-dir": 0.25, "cheetah-vel": 0.05}
"""Milliseconds per agent step, measured on one core. Only the ratios matter: they are used to give every worker equal work."""
_OWN_STEP_COST = 0.25
"""The same for tasks of one's own, which nobody has measured."""

Array = NDArray[Any]
StepResult = tuple[NDArray[np.float32], Array, Array, Array, dict[str, Any]]


class MixedTaskVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[np.float32], Array]):
    """A vector environment with one slot per entry of `tasks`.

    Any method may raise M3DTError because a worker died or an environment in it raised an error; the message names the worker
    and its tasks. The vector environment is then closed, as it is after Ctrl-C.

    Args:
        tasks: the N tasks of the slots; tasks may repeat.
        workers: number of processes among which the slots are divided; None: one per core, at most N; 0: the slots run in this
            process.
        stop_on_success: end an episode on the step that first reports success.
        later: tasks that a reset may give a slot besides `tasks` and the 160; worker processes learn of them now.

    Raises:
        ConfigError: there are no tasks, or the number of workers is negative; or as `make_env` and `registrations`.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        *,
        workers: int | None = None,
        stop_on_success: bool = False,
        later: Sequence[TaskSpec] = (),
    ) -> None:
        self.closed = True  # until there is something to close
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ConfigError("MixedTaskVectorEnv needs at least one task; got none")
        n_workers = min(usable_cores() if workers is None else workers, len(self.tasks))
        if n_workers < 0:
            raise ConfigError(f"MixedTaskVectorEnv workers must be None or >= 0; got {workers}")
        self.num_envs = len(self.tasks)
        W, A = padded_widths([*self.tasks, *later])
        self.single_observation_space = Box(-np.inf, np.inf, (W,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (A,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._used = _used_entries(self.tasks, A)
        self._states = SlotStates.empty(self.num_envs, W)
        self._shares = share_out(self.tasks, max(n_workers, 1))
        self._workers: list[Worker] = []
        self._pending: deque[tuple[int, NDArray[np.intp]]] = deque()  # (worker, its slots) of every reply to come
        self._local = Slots(self.tasks, stop_on_success, W) if n_workers == 0 else None
        self._started = False
        self.closed = False
        if n_workers:
            self._start_workers(stop_on_success, later)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode in every slot, or in those that `options["reset_mask"]` selects.

        Args:
            seed: slot i gets `seed + i`, or entry i of a list; None: the next seed of the slot's own generator.
            options: "reset_mask": (N,) bool with at least one True. "tasks": N tasks; the slots that are reset run theirs from
                now on. The dict is not changed.

        Returns:
            observations (N, W) float32, and info with "active" (N,) bool and "success" (N,) bool.

        Raises:
            ShapeError: the reset mask is not (N,) bool, or the list of seeds or tasks does not have N entries.
            InvalidValueError: the reset mask has no True, or a seed is negative.
        """
        self.reset_async(seed=seed, options=options)
        observations, *_, info = self.wait()
        return observations, info

    def step(self, actions: NDArray[np.float32]) -> StepResult:
        """Takes one agent step in each active slot.

        Args:
            actions: (N, A). Entries beyond the task's own are ignored, and so are the actions of frozen slots.

        Returns:
            observations (N, W) float32, rewards (N,) float64, terminated (N,) bool, truncated (N,) bool, info as from `reset`.

        Raises:
            ShapeError: the shape of `actions` is not (N, A).
            InvalidValueError: an entry that is used is NaN or infinite; the message names slot and task.
            M3DTError: no slot was ever reset.
        """
        self.step_async(actions)
        return self.wait()

    def reset_async(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        """Begins a reset; `wait` collects its result. Arguments and errors are those of `reset`.

        Raises:
            M3DTError: a slot to reset is busy; call `wait` first.
        """
        mask, seeds, tasks = self._reset_mask(options), self._seeds(seed), self._reset_tasks(options)
        self._check_ready(mask)
        self.tasks = tuple(tasks[i] if mask[i] else task for i, task in enumerate(self.tasks))
        self._used = _used_entries(self.tasks, self._used.shape[1])
        self._send("reset", mask, lambda slots: ([seeds[i] for i in slots], [tasks[i] for i in slots]))
        self._started = True

    def step_async(self, actions: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> None:
        """Begins a step of the slots that `mask` selects; `wait` collects its result. Errors are those of `step`.

        mask: (N,) bool; None: all slots.

        Raises:
            M3DTError: a slot to step is busy; call `wait` first.
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
        """Waits until no slot that `mask` selects is busy.

        mask: (N,) bool; None: all slots.

        Returns:
            as `step`. The entries of slots that are still busy are those of their last result.
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
        """Stops the workers; `close` calls it."""
        if self._local is not None:
            self._local.close()
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

    def _start_workers(self, stop_on_success: bool, later: Sequence[TaskSpec]) -> None:
        with self._closing_on_error():
            for number, share in enumerate(self._shares):
                tasks, width = [self.tasks[i] for i in share], self._states.observations.shape[1]
                self._workers.append(Worker(number, tasks, later, stop_on_success, width))
            for worker in self._workers:
                worker.receive()

    def _send(self, command: str, mask: NDArray[np.bool_], arguments: Callable[[list[int]], tuple[Any, ...]]) -> None:
        """Sends `command` to the workers of the slots that `mask` selects; `arguments(slots)` makes one worker's arguments."""
        for number, share in enumerate(self._shares):
            places = np.flatnonzero(mask[share])  # indices in the worker's own list of slots
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
        except BaseException:  # Ctrl-C too: an unread reply would be taken for that of the next command
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
        W, A = padded_widths(tasks)
        if self._states.observations.shape[1] < W or self._used.shape[1] < A:
            raise ShapeError(
                f"these tasks need widths {W} and {A}; name the wider ones in `later` when you make the environment"
            )
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


def _used_entries(tasks: Sequence[TaskSpec], width: int) -> NDArray[np.bool_]:
    """Whether each entry of a slot's action is one of its task's own, (N, width)."""
    used: NDArray[np.bool_] = np.arange(width) < np.array([[task.act_dim] for task in tasks])
    return used


def _step_cost(task: TaskSpec) -> float:
    return _STEP_COST.get(task.domain, _OWN_STEP_COST)


def share_out(tasks: Sequence[TaskSpec], workers: int) -> list[NDArray[np.intp]]:
    """Divides the slots among the workers by cost per step: the most expensive first, to the worker with the least work."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for slot in sorted(range(len(tasks)), key=lambda i: -_step_cost(tasks[i])) if workers else ():
        worker = load.index(min(load))
        shares[worker].append(slot)
        load[worker] += _step_cost(tasks[slot])
    return [np.array(sorted(share), np.intp) for share in shares]
