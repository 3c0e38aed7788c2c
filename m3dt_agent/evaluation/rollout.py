"""Runs a fixed set of episodes in the mixed-task vector environment; it never scores, `m3dt_agent.scores` does.

    episodes   every task × seeds config.seed … config.seed + episodes - 1, fixed before anything runs, so that short episodes
               are not favoured; the policy keeps a state for each
    slots      `config.slots` environments in worker processes; each runs one episode after the other (schedule.py)
    groups     with `config.overlap` the slots form two halves that take strict turns: the workers step one half while the
               policy acts for the other; else all slots are one group

Which episodes act together depends on their lengths and on `config.slots`, never on timing or on the number of workers. In
`reset` a policy learns the task and seed of each episode, so that a policy that draws random numbers can derive them from the
seed. Rows are ordered by task (as given) and seed.

With a file for the rows (kept.py), episodes whose rows are there are not played again. The last bits of an agent's float32
actions depend on which episodes act together and on the number of threads (threads.py). So a continued evaluation has exactly
the rows of an uninterrupted one only if it is deterministic: a part then is played again as a whole unless all of its rows are
there. Behavior policies act alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from tqdm import tqdm

from ..agent import M3DTAgent
from ..agent.inputs import Bools, Float32Array
from ..config import EvalConfig
from ..envs.vector import MixedTaskVectorEnv
from ..errors import ConfigError, InvalidValueError, ShapeError
from ..model.determinism import cpu_threads
from ..scores.rows import EpisodeResult
from ..system.machine import shows_progress
from ..tasks import TaskSpec, is_builtin, padded_widths, resolve
from .kept import KeptRows, Protocol, keep_rows
from .policies import AgentPolicy, BehaviorPolicies, VectorPolicy, as_policy, settings_of, tasks_of
from .schedule import Episode, Queue
from .threads import FasterThreads

TASKS_PER_PART = 4
"""Tasks whose episodes run together in a deterministic evaluation, in one job, and in one part of a benchmark cell."""

Act: TypeAlias = Callable[[], Float32Array]
"""One decision for all slots."""

_EPISODES_AT_ONCE = 1024
"""A policy keeps a state for each episode; with the prompt's keys and values it takes 0.2 MB in the paper's model."""
_DETERMINISTIC_THREADS = 2


def evaluate(
    policy: M3DTAgent | VectorPolicy | str,
    tasks: Sequence[str | TaskSpec],
    config: EvalConfig | None = None,
    *,
    rows: str | Path | None = None,
    progress: bool | None = None,
) -> list[EpisodeResult]:
    """Runs `config.episodes` episodes of every task and returns their rows, ordered by task and seed.

    With `rows`, every row is in that file as soon as its episode ends. Called again after a kill or Ctrl-C, the same evaluation
    plays what is missing there; with `deterministic`, an agent's rows are those of an uninterrupted one to the last bit.

    Args:
        policy: an agent, any `VectorPolicy`, or the level of a behavior policy ("random", "zero", "expert", …).
        tasks: as `tasks.resolve` takes them.
        config: None is `EvalConfig()`. Its `rtg_mode` holds for agents; an `AgentPolicy` with its own mode keeps that.
        rows: a file, made if it is not there; it may have other rows of the same policy, bank and settings. None: no file.
        progress: show a progress bar; None: only on a terminal.

    Raises:
        UnknownTaskError: no such task, or one the agent does not have.
        ConfigError: no tasks, or a level that a task does not have; or `rows` has rows of another policy, bank or setting, or
            another process writes it.
        PathError: `rows` cannot be read and written. DatasetError: it holds something else than rows.
        UnwrittenRowsError: all episodes are played and the file lacks rows, as on a full disk; the error has the rows.
        InvalidValueError: an observation, action or return is not finite; the message names the task.
        ShapeError: the policy returns actions of another shape.
        MissingDependencyError: a simulator that is not installed.
    """
    config = config or EvalConfig()
    acting = as_policy(policy, config)
    specs = resolve(tasks, first=tasks_of(acting))
    if not specs:
        raise ConfigError("evaluate needs at least one task")
    asked = episodes_of(specs, config)
    with (
        keep_rows(rows, protocol_of(acting, config), asked) as kept,
        _progress_bar(acting.name, kept, len(asked), progress) as bar,
        cpu_threads(_DETERMINISTIC_THREADS if config.deterministic else torch.get_num_threads()),
    ):

        def keep(row: EpisodeResult) -> None:
            bar.update(kept.add(row))

        decide = FasterThreads() if _may_choose_threads(acting, config) else _plainly
        for together in _groups(specs, config, kept):
            _Rollout(acting, together, config, keep, decide).run()
        return kept.finish()


def check_rows(path: str | Path, policy: M3DTAgent | VectorPolicy | str, config: EvalConfig) -> None:
    """Checks that `evaluate` can keep its rows in `path`; for callers about to do something long before.

    Raises:
        M3DTError: what `evaluate` says of `rows`.
    """
    with keep_rows(path, protocol_of(as_policy(policy, config), config), ()):
        pass


def protocol_of(policy: VectorPolicy, config: EvalConfig) -> Protocol:
    """What all rows of `policy` have in common."""
    return Protocol(policy.name, policy.bank_hash, config.stop_on_success, settings_of(policy), installed_versions())


def episodes_of(tasks: Sequence[TaskSpec], config: EvalConfig) -> list[Episode]:
    """All episodes of `tasks`, ordered by task and seed."""
    return [Episode(task, config.seed + k) for task in tasks for k in range(config.episodes)]


def _groups(tasks: Sequence[TaskSpec], config: EvalConfig, kept: KeptRows) -> Iterator[list[Episode]]:
    """The episodes to play, in groups that act together: whole groups if `deterministic`, else only what is missing."""
    for part in parts_of(tasks) if config.deterministic else [tasks]:
        episodes = episodes_of(part, config)
        if not config.deterministic:
            episodes = [episode for episode in episodes if episode not in kept]
        for first in range(0, len(episodes), _EPISODES_AT_ONCE):
            together = episodes[first : first + _EPISODES_AT_ONCE]
            if not all(episode in kept for episode in together):
                yield together


def _progress_bar(name: str, kept: KeptRows, total: int, progress: bool | None) -> tqdm[None]:
    shown = shows_progress(progress)
    return tqdm(total=total, initial=kept.ended, desc=f"evaluate {name}", unit="episode", disable=not shown)


def parts_of(tasks: Sequence[TaskSpec]) -> list[Sequence[TaskSpec]]:
    """Splits `tasks` into parts of TASKS_PER_PART, the last one perhaps shorter."""
    return [tasks[first : first + TASKS_PER_PART] for first in range(0, len(tasks), TASKS_PER_PART)]


def _overlaps(policy: VectorPolicy, config: EvalConfig) -> bool:
    """Whether to let the policy and the simulators work at the same time.

    By default not for an agent on the CPU: it needs the simulators' cores, and two half batches cost more than a whole one.
    """
    if config.overlap is not None:
        return config.overlap
    return isinstance(policy, BehaviorPolicies) or (isinstance(policy, AgentPolicy) and policy.device.type != "cpu")


def _may_choose_threads(policy: VectorPolicy, config: EvalConfig) -> bool:
    """Whether the last bits of actions may depend on which number of threads was faster."""
    return isinstance(policy, AgentPolicy) and policy.device.type == "cpu" and not config.deterministic


def _plainly(act: Act) -> Float32Array:
    return act()


class _Rollout:
    """Runs M episodes in S slots; arrays (M, …) have a row per episode."""

    def __init__(
        self,
        policy: VectorPolicy,
        episodes: Sequence[Episode],
        config: EvalConfig,
        keep: Callable[[EpisodeResult], None],
        decide: Callable[[Act], Float32Array],
    ) -> None:
        self._policy, self._episodes, self._config, self._keep, self._decide = policy, episodes, config, keep, decide
        M, S = len(episodes), min(config.slots, len(episodes))
        self._queue = Queue(episodes)
        self._running = np.array([self._queue.take() for _ in range(S)])  # (S,) each slot's episode; -1: none left
        G = 2 if _overlaps(policy, config) else 1
        self._groups = np.arange(G)[:, None] == np.arange(S) * G // S  # (G, S)
        self._tasks = list(dict.fromkeys(episode.task for episode in episodes))
        W, self._act_width = padded_widths(self._tasks)
        self._observations, self._rewards = np.zeros((M, W), np.float32), np.zeros(M)
        self._returns, self._lengths = np.zeros(M), np.zeros(M, np.int64)

    def run(self) -> None:
        """Runs the episodes; each one's row is kept when it ends."""
        self._policy.reset([episode.task for episode in self._episodes], [(episode.seed,) for episode in self._episodes])
        tasks = [self._episodes[i].task for i in self._running.tolist()]
        with contextlib.closing(
            MixedTaskVectorEnv(
                tasks, workers=self._config.workers, stop_on_success=self._config.stop_on_success, later=self._tasks
            )
        ) as self._env:
            for group in self._groups:
                self._begin(group)
            while (self._running >= 0).any():
                for group in self._groups:
                    self._turn(group & (self._running >= 0))

    def _turn(self, group: Bools) -> None:
        """Takes in the results of `group` (S,), starts new episodes where one ended, and acts for the rest."""
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

    def _check_finite(self, obs: Float32Array, group: Bools) -> None:
        bad = group & ~np.isfinite(obs).all(axis=1)
        if bad.any():
            i = int(self._running[bad][0])
            task, seed = self._episodes[i].task, self._episodes[i].seed
            raise InvalidValueError(
                f"task {task.name!r}, seed {seed}: an observation is not finite after {self._lengths[i]} steps"
            )

    def _end(self, slot: int, success: bool) -> None:
        i = int(self._running[slot])
        self._keep(_row(self._episodes[i], self._returns[i], self._lengths[i], success, self._policy, self._config))
        self._running[slot] = self._queue.take(self._episodes[i].task)

    def _begin(self, slots: Bools) -> None:
        if slots.any():
            episodes = [
                self._episodes[i] for i in self._running.tolist()
            ]  # any episode for the other slots: they are not reset
            tasks, seeds = zip(*((episode.task, episode.seed) for episode in episodes), strict=True)
            self._env.reset_async(seed=list(seeds), options={"reset_mask": slots, "tasks": tasks})

    def _act(self, slots: Bools) -> None:
        episodes = self._running[slots]
        if not episodes.size:
            return
        active = np.zeros(len(self._episodes), bool)
        active[episodes] = True
        starts = active & (self._lengths == 0)
        actions = np.zeros((len(slots), self._act_width), np.float32)
        observations, rewards = self._observations.copy(), self._rewards.copy()  # a policy may change what it is given
        act = functools.partial(self._policy.act, observations, reward=rewards, reset_mask=starts, active=active)
        acted = self._decide(act)
        actions[slots] = self._checked(acted)[episodes]
        self._lengths[episodes] += 1
        self._env.step_async(actions, slots)

    def _checked(self, acted: object) -> Float32Array:
        expected = (len(self._episodes), self._act_width)
        try:
            actions = np.asarray(acted, np.float32)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"{self._policy.name}: act must return numbers of shape {expected}: {error}") from error
        if actions.shape != expected:
            raise ShapeError(f"{self._policy.name}: act must return actions of shape {expected}; got {actions.shape}")
        return actions


def _row(
    episode: Episode, episode_return: float, length: int, success: bool, policy: VectorPolicy, config: EvalConfig
) -> EpisodeResult:
    task, seed = episode.task, episode.seed
    if not math.isfinite(episode_return):
        raise InvalidValueError(f"task {task.name!r}, seed {seed}: the return is {episode_return} after {length} steps")
    return EpisodeResult(
        task=task.name,
        seed=seed,
        episode_return=float(episode_return),
        length=int(length),
        success=bool(success) if task.has_success else None,
        policy=policy.name,
        bank_hash=policy.bank_hash,
        reward_version=_meta_world_reward_version() if task.domain == "metaworld" else None,
        stop_on_success=config.stop_on_success,
        versions=installed_versions(),
        settings=settings_of(policy),
        score=None if is_builtin(task) else task.score,
    )


def _meta_world_reward_version() -> str:
    from ..envs.metaworld import REWARD_VERSION

    return REWARD_VERSION


@functools.cache
def installed_versions() -> Mapping[str, str]:
    """Distribution name → version of the packages that a return depends on, without those that are not installed."""
    found = {}
    for name in ("m3dt-agent", "torch", "gymnasium", "mujoco", "metaworld", "dm_control"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
