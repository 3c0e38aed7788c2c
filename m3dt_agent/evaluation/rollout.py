"""Rollouts with fixed quotas and seeds over the mixed-task vector environment. Rolling out never scores; see `scores.py`.

    episodes   every task × seeds config.seed … config.seed + episodes - 1, fixed before anything runs, so that short ones are
               not favoured; the policy has a state for each
    slots      `config.slots` environments in worker processes; each runs one episode after the other, of its own task while
               there are any, then of the task with the most left
    groups     with `config.overlap` halves of the slots, in strict turn: the workers step one while the policy acts for the
               other; else all slots are one group

What acts together depends on the lengths of episodes and on `config.slots`, never on timing or on the number of workers. A
policy learns each episode's task and seed in `reset`, so one that draws random numbers can derive them from the seed. Rows come
back ordered by task (as asked) and seed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..agent import M3DTAgent
from ..config import EvalConfig
from ..envs.vector import MixedTaskVectorEnv
from ..errors import ConfigError, InvalidValueError
from ..model.determinism import cpu_threads
from ..scores import EpisodeResult
from ..tasks import MAX_ACT_DIM, MAX_OBS_DIM, TaskSpec, resolve
from .policies import AgentPolicy, BehaviorPolicies, Bools, Floats, VectorPolicy, as_policy

TASKS_PER_PART = 4
"""Tasks whose episodes run together in a deterministic evaluation, and in one job."""

_EPISODES_AT_ONCE = 1024
"""A policy has a state for each episode, with its prompt's keys and values: 0.2 MB each in the paper's model."""
_DETERMINISTIC_THREADS = 2


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode to run."""

    task: TaskSpec
    seed: int


class Queue:
    """Numbers of the episodes that nobody has begun, and how many slots run each task."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._left: dict[TaskSpec, deque[int]] = {}
        self._slots: Counter[TaskSpec] = Counter()
        for i, episode in enumerate(episodes):
            self._left.setdefault(episode.task, deque()).append(i)

    def take(self, last: TaskSpec | None = None) -> int:
        """The next episode of a slot that ran `last` (None: nothing yet), -1 if there are no more.

        Of the same task if it has one left, since another takes a new environment; else of the task whose slots, with this one,
        have the most steps to go.
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


def evaluate(
    policy: M3DTAgent | VectorPolicy | str,
    tasks: Sequence[str | TaskSpec],
    config: EvalConfig | None = None,
    *,
    progress: bool | None = None,
) -> list[EpisodeResult]:
    """Runs `config.episodes` episodes of every task and returns their rows, ordered by task and seed.

    Args:
        policy: an agent, any `VectorPolicy`, or the level of a behavior policy ("random", "zero", "expert", ...).
        tasks: what `tasks.resolve` takes. config: None is `EvalConfig()`.
        progress: show a progress bar; None: on a terminal.

    Raises:
        UnknownTaskError: no such task, or one the agent does not have. ConfigError: no tasks, or a level a task does not have.
        InvalidValueError: a simulator or a policy gave something that is not finite; the message names task and seed.
        MissingDependencyError: a simulator that is not installed.
    """
    config = config or EvalConfig()
    specs = resolve(tasks)
    if not specs:
        raise ConfigError("evaluate needs at least one task")
    acting = as_policy(policy, config)
    parts = parts_of(specs) if config.deterministic else [specs]
    shown = sys.stderr.isatty() if progress is None else progress
    rows: list[EpisodeResult] = []
    with (
        tqdm(total=len(specs) * config.episodes, desc=f"evaluate {acting.name}", unit="episode", disable=not shown) as bar,
        cpu_threads(_DETERMINISTIC_THREADS if config.deterministic else torch.get_num_threads()),
    ):
        for part in parts:
            episodes = [Episode(task, config.seed + k) for task in part for k in range(config.episodes)]
            for first in range(0, len(episodes), _EPISODES_AT_ONCE):
                rows += _Rollout(acting, episodes[first : first + _EPISODES_AT_ONCE], config, bar).run()
    return rows


def parts_of(tasks: Sequence[TaskSpec]) -> list[Sequence[TaskSpec]]:
    """`tasks` in parts of TASKS_PER_PART."""
    return [tasks[first : first + TASKS_PER_PART] for first in range(0, len(tasks), TASKS_PER_PART)]


def _overlaps(policy: VectorPolicy, config: EvalConfig) -> bool:
    """An agent on the CPU competes with the simulators for its cores, and half a batch costs more than half of a whole one."""
    if config.overlap is not None:
        return config.overlap
    return isinstance(policy, BehaviorPolicies) or (isinstance(policy, AgentPolicy) and policy.device.type != "cpu")


class _Rollout:
    """Runs M episodes in S slots. Arrays (M, ...) are by episode."""

    def __init__(self, policy: VectorPolicy, episodes: Sequence[Episode], config: EvalConfig, bar: Any) -> None:
        self._policy, self._episodes, self._config, self._bar = policy, episodes, config, bar
        M, S = len(episodes), min(config.slots, len(episodes))
        self._queue = Queue(episodes)
        self._running = np.array([self._queue.take() for _ in range(S)])  # (S,) the episode of a slot, -1: none any more
        G = 2 if _overlaps(policy, config) else 1
        self._groups = np.arange(G)[:, None] == np.arange(S) * G // S  # (G, S)
        self._observations, self._rewards = np.zeros((M, MAX_OBS_DIM), np.float32), np.zeros(M)
        self._returns, self._lengths = np.zeros(M), np.zeros(M, np.int64)
        self._rows: dict[int, EpisodeResult] = {}

    def run(self) -> list[EpisodeResult]:
        """The row of every episode."""
        self._policy.reset([episode.task for episode in self._episodes], [(episode.seed,) for episode in self._episodes])
        tasks = [self._episodes[i].task for i in self._running.tolist()]
        with contextlib.closing(
            MixedTaskVectorEnv(tasks, workers=self._config.workers, stop_on_success=self._config.stop_on_success)
        ) as self._env:
            for group in self._groups:
                self._begin(group)
            while (self._running >= 0).any():
                for group in self._groups:
                    self._turn(group & (self._running >= 0))
        return [self._rows[i] for i in range(len(self._episodes))]

    def _turn(self, group: Bools) -> None:
        """What the slots of `group` (S,) did is taken in, new episodes begin where one ended, and the others act."""
        obs, reward, terminated, truncated, info = self._env.wait(group)
        self._check_finite(obs, group)
        episodes = self._running[group]  # (k,)
        self._observations[episodes], self._rewards[episodes] = obs[group], reward[group]
        self._returns[episodes] += reward[group]
        ended = group & (terminated | truncated)
        for slot in np.flatnonzero(ended).tolist():
            self._end(slot, info["success"][slot])
        self._begin(ended & (self._running >= 0))
        self._act(group & ~ended)

    def _check_finite(self, obs: Floats, group: Bools) -> None:
        bad = group & ~np.isfinite(obs).all(axis=1)
        if bad.any():
            i = int(self._running[bad][0])
            task, seed = self._episodes[i].task, self._episodes[i].seed
            raise InvalidValueError(
                f"task {task.name!r}, seed {seed}: an observation is not finite after {self._lengths[i]} steps"
            )

    def _end(self, slot: int, success: bool) -> None:
        i = int(self._running[slot])
        self._rows[i] = _row(self._episodes[i], self._returns[i], self._lengths[i], success, self._policy, self._config)
        self._bar.update()
        self._running[slot] = self._queue.take(self._episodes[i].task)

    def _begin(self, slots: Bools) -> None:
        if slots.any():
            episodes = [self._episodes[i] for i in self._running.tolist()]  # of the others any, they are not reset
            tasks, seeds = zip(*((episode.task, episode.seed) for episode in episodes), strict=True)
            self._env.reset_async(seed=list(seeds), options={"reset_mask": slots, "tasks": tasks})

    def _act(self, slots: Bools) -> None:
        episodes = self._running[slots]
        if not episodes.size:
            return
        active = np.zeros(len(self._episodes), bool)
        active[episodes] = True
        starts = active & (self._lengths == 0)
        actions = np.zeros((len(slots), MAX_ACT_DIM), np.float32)
        acted = self._policy.act(self._observations, reward=self._rewards, reset_mask=starts, active=active)
        actions[slots] = acted[episodes]
        self._lengths[episodes] += 1
        self._env.step_async(actions, slots)


def _row(
    episode: Episode, episode_return: float, length: int, success: bool, policy: VectorPolicy, config: EvalConfig
) -> EpisodeResult:
    task, seed = episode.task, episode.seed
    if not math.isfinite(episode_return):
        raise InvalidValueError(f"task {task.name!r}, seed {seed}: the return is {episode_return} after {length} steps")
    succeeds = task.domain == "metaworld"
    return EpisodeResult(
        task=task.name,
        seed=seed,
        episode_return=float(episode_return),
        length=int(length),
        success=bool(success) if succeeds else None,
        policy=policy.name,
        bank_hash=policy.bank_hash,
        reward_version=_meta_world_reward_version() if succeeds else None,
        stop_on_success=config.stop_on_success,
        versions=installed_versions(),
    )


def _meta_world_reward_version() -> str:
    from ..envs.metaworld import REWARD_VERSION

    return REWARD_VERSION


@functools.cache
def installed_versions() -> Mapping[str, str]:
    """Versions of what decides a return, by distribution name; what is not installed is left out."""
    found = {}
    for name in ("m3dt-agent", "torch", "gymnasium", "mujoco", "metaworld", "dm_control"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
