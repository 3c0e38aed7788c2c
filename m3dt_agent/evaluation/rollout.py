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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..agent import Experts, M3DTAgent, RtgMode
from ..config import EvalConfig, Stage
from ..data.batches import BatchSampler
from ..data.behavior import BehaviorPolicy, behavior_policy
from ..data.task_datasets import TaskDatasets
from ..envs.vector import MixedTaskVectorEnv
from ..errors import ConfigError, InvalidValueError
from ..model import Routing
from ..scores import EpisodeResult, Summary, read_rows, summarize, write_rows
from ..tasks import MAX_ACT_DIM, MAX_OBS_DIM, TaskSpec, lookup, resolve
from ..training.loop import cpu_threads

__all__ = [
    "AgentPolicy",
    "BehaviorPolicies",
    "EpisodeResult",
    "Summary",
    "VectorPolicy",
    "action_error",
    "evaluate",
    "read_rows",
    "router_usage",
    "summarize",
    "write_rows",
]

_ERROR_BATCH = 128
"""Windows predicted at once in `action_error`."""

TASKS_PER_PART = 4
"""Tasks whose episodes run together in a deterministic evaluation, and in one job."""

_EPISODES_AT_ONCE = 1024
"""A policy has a state for each episode, with its prompt's keys and values: 0.2 MB each in the paper's model."""
_DETERMINISTIC_THREADS = 2

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class VectorPolicy(Protocol):
    """Whatever acts in N slots at once. `name` and `bank_hash` ("" without a bank) are stored in every row."""

    @property
    def name(self) -> str: ...

    @property
    def bank_hash(self) -> str: ...

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        """Slot i is about to run episodes of tasks[i] with seeds[i], in that order."""

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        """(N, 8) actions for (N, 39) observations.

        reward (N,): of the step before, None at first. reset_mask (N,): obs[i] opens the slot's next episode. active (N,):
        False where the slot is frozen and its action is not used.
        """


class AgentPolicy:
    """An `M3DTAgent` as a `VectorPolicy`. experts: what the agent uses meanwhile (None: as it is set)."""

    def __init__(self, agent: M3DTAgent, rtg_mode: RtgMode = "rewards", name: str | None = None) -> None:
        self._agent, self._rtg_mode = agent, rtg_mode
        self.name = name or f"m3dt-{_experts_name(agent.experts)}"
        self.bank_hash = agent.content_hash

    @property
    def device(self) -> torch.device:
        """Where the agent's model runs."""
        return self._agent.device

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._agent.reset(tasks, rtg_mode=self._rtg_mode)

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        return self._agent.act(obs, reward=reward, reset_mask=reset_mask, active=active)


def _experts_name(experts: Experts) -> str:
    if isinstance(experts, Routing):
        return "routed"
    return f"expert-{experts}" if isinstance(experts, int) else {"none": "backbone", "mixture": "mixture"}[experts]


class BehaviorPolicies:
    """A behavior policy per slot; `level` is what `data.behavior.behavior_policy` takes ("random", "zero", "expert+0.3", …)."""

    bank_hash = ""

    def __init__(self, level: str) -> None:
        self.name = level

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._tasks = tasks
        self._policies: list[BehaviorPolicy] = [behavior_policy(task, self.name) for task in tasks]
        self._seeds = [iter(queue) for queue in seeds]

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        for i in np.flatnonzero(reset_mask).tolist():
            self._policies[i].reset(next(self._seeds[i]))
        actions = np.zeros((len(obs), MAX_ACT_DIM), np.float32)
        for i in np.flatnonzero(active).tolist():
            task = self._tasks[i]
            actions[i, : task.act_dim] = self._policies[i](obs[i, : task.obs_dim])
        return actions


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
    acting = _as_policy(policy, config)
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


def _as_policy(policy: M3DTAgent | VectorPolicy | str, config: EvalConfig) -> VectorPolicy:
    if isinstance(policy, M3DTAgent):
        return AgentPolicy(policy, config.rtg_mode)
    return BehaviorPolicies(policy) if isinstance(policy, str) else policy


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


@torch.inference_mode()
def action_error(
    agent: M3DTAgent, data: TaskDatasets, *, experts: Experts | None = None, n_windows: int = 256, seed: int = 0
) -> dict[str, float]:
    """Mean square error of the agent's predictions of `data`'s actions, per task, over real steps and real action dimensions.

    Args:
        data: demonstrations of tasks the agent knows, held out; windows come from its training episodes, normalized with the
            agent's statistics and prompted with its best prompt.
        experts: as `M3DTAgent.experts`; None is what the agent is set to.
        n_windows: per task. seed: decides the windows, which are the same for every agent with this context length.

    Raises:
        UnknownTaskError: a task the agent does not have. ConfigError: experts its bank does not have.
    """
    experts = agent.experts if experts is None else agent.checked_experts(experts)
    sampler = best_prompt_sampler(agent, data, "backbone", min(n_windows, _ERROR_BATCH), seed)
    errors = {}
    for i, task in enumerate(data.tasks):
        total, count = 0.0, 0
        for step, first in enumerate(range(0, n_windows, _ERROR_BATCH)):
            batch = sampler.sample_task(i, step).to(agent.device, agent.dtype)
            mask = batch.action_mask & (torch.arange(len(batch.tasks), device=agent.device) < n_windows - first)[:, None, None]
            difference = agent.model(batch.window, batch.prompt, experts) - batch.window.actions  # (B, T, D_a)
            total += float(difference[mask].double().square().sum())
            count += int(mask.sum())
        errors[task.name] = total / count
    return errors


@torch.inference_mode()
def router_usage(agent: M3DTAgent, data: TaskDatasets, *, n_windows: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """Task → (E,) weights the agent's router gives its experts on windows of `data`, mean over blocks and real steps.

    Raises:
        UnknownTaskError: a task the agent does not have.
    """
    sampler = best_prompt_sampler(agent, data, "router", n_windows, seed)
    found = {}
    for i, task in enumerate(data.tasks):
        batch = sampler.sample_task(i, 0).to(agent.device, agent.dtype)
        weights = agent.model.router_weights(batch.window, batch.prompt)  # (B, T, L, E)
        found[task.name] = weights[batch.window.mask].mean(dim=(0, 1)).tolist()
    return found


def best_prompt_sampler(agent: M3DTAgent, data: TaskDatasets, stage: Stage, batch_size: int, seed: int) -> BatchSampler:
    """Windows of one task at a time, prompted as the agent prompts itself."""
    best = {task.name: lookup(dict(agent.prompts), task.name, "task of this agent")[:1] for task in data.tasks}
    return BatchSampler(
        data, agent.statistics, best, agent.config, batch_size=batch_size, tasks_per_batch=1, seed=seed, stage=stage
    )
