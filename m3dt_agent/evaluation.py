"""Rollouts with fixed quotas and seeds over the mixed-task vector environment. Rolling out never scores; see `scores.py`.

Everything is assigned before anything runs, so that short episodes are not favoured and results do not depend on timing:

    jobs      every task × seeds config.seed … config.seed + episodes - 1
    waves     tasks sorted by episode length, `config.slots` tasks per wave
    slots     of a wave, shared out so that the longest-running task gets the next one; a task's seeds are dealt to its slots
    step      slot i runs its seeds one after the other, then is frozen; the wave ends when all slots are

A policy learns each slot's task and seeds in `reset`, so one that draws random numbers can derive them from the episode's seed.
Rows come back ordered by task (as asked) and seed, whatever the number of slots and workers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from .agent import Experts, M3DTAgent, RtgMode
from .config import EvalConfig, Stage
from .data.batches import BatchSampler
from .data.behavior import BehaviorPolicy, behavior_policy
from .data.task_datasets import TaskDatasets
from .envs.vector import MixedTaskVectorEnv
from .errors import ConfigError, InvalidValueError
from .scores import EpisodeResult, Summary, read_rows, summarize, write_rows
from .tasks import MAX_ACT_DIM, TaskSpec, lookup, resolve

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
        self.name = name or f"m3dt-{_EXPERTS_NAMES.get(agent.experts, f'expert-{agent.experts}')}"
        self.bank_hash = agent.content_hash

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._agent.reset(tasks, rtg_mode=self._rtg_mode)

    def act(self, obs: Floats, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools) -> Floats:
        return self._agent.act(obs, reward=reward, reset_mask=reset_mask, active=active)


_EXPERTS_NAMES: dict[Experts, str] = {"none": "backbone", "mixture": "mixture"}


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
class Slot:
    """One slot of a wave: its task, and the seeds of the episodes it runs, in order."""

    task: TaskSpec
    seeds: tuple[int, ...]


def plan(tasks: Sequence[TaskSpec], config: EvalConfig) -> list[list[Slot]]:
    """The waves: which slot runs which episodes. Every (task, seed) is in exactly one slot."""
    by_length = sorted(tasks, key=lambda task: -task.max_episode_steps)
    return [_wave(by_length[i : i + config.slots], config) for i in range(0, len(by_length), config.slots)]


def _wave(tasks: Sequence[TaskSpec], config: EvalConfig) -> list[Slot]:
    shares = dict.fromkeys(tasks, 1)

    def steps(task: TaskSpec) -> int:  # until the task's last slot ends, if no episode ends early
        return math.ceil(config.episodes / shares[task]) * task.max_episode_steps

    while sum(shares.values()) < config.slots:
        longest = max((task for task in tasks if shares[task] < config.episodes), key=steps, default=None)
        if longest is None:
            break
        shares[longest] += 1
    seeds = range(config.seed, config.seed + config.episodes)
    return [Slot(task, tuple(seeds[k :: shares[task]])) for task in tasks for k in range(shares[task])]


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
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(specs) * config.episodes, desc=f"evaluate {acting.name}", unit="episode", disable=not shown) as bar:
        rows = [row for wave in plan(specs, config) for row in _run_wave(acting, wave, config, bar)]
    order = {task.name: i for i, task in enumerate(specs)}
    return sorted(rows, key=lambda row: (order[row.task], row.seed))


def _as_policy(policy: M3DTAgent | VectorPolicy | str, config: EvalConfig) -> VectorPolicy:
    if isinstance(policy, M3DTAgent):
        return AgentPolicy(policy, config.rtg_mode)
    return BehaviorPolicies(policy) if isinstance(policy, str) else policy


def _run_wave(policy: VectorPolicy, wave: Sequence[Slot], config: EvalConfig, bar: Any) -> Iterator[EpisodeResult]:
    N = len(wave)
    policy.reset([slot.task for slot in wave], [slot.seeds for slot in wave])
    env = MixedTaskVectorEnv([slot.task for slot in wave], workers=config.workers, stop_on_success=config.stop_on_success)
    with contextlib.closing(env):
        episode = np.zeros(N, np.int64)  # which of its seeds a slot is running
        returns, lengths = np.zeros(N), np.zeros(N, np.int64)
        active, starts = np.ones(N, bool), np.ones(N, bool)
        reward: npt.NDArray[np.float64] | None = None
        obs, info = env.reset(seed=[slot.seeds[0] for slot in wave])
        while active.any():
            actions = policy.act(obs, reward=reward, reset_mask=starts, active=active)
            obs, reward, terminated, truncated, info = env.step(actions)
            returns += np.where(active, reward, 0.0)
            lengths += active
            ended = active & (terminated | truncated)
            for i in np.flatnonzero(ended).tolist():
                yield _row(wave[i], int(episode[i]), returns[i], lengths[i], info["success"][i], policy, config)
                bar.update()
            starts = ended & (episode + 1 < [len(slot.seeds) for slot in wave])
            active &= ~ended | starts
            episode[starts] += 1
            returns[ended], lengths[ended] = 0.0, 0
            if starts.any():
                seeds = [slot.seeds[k] if start else None for slot, k, start in zip(wave, episode, starts, strict=True)]
                obs, _ = env.reset(seed=seeds, options={"reset_mask": starts})


def _row(
    slot: Slot, episode: int, episode_return: float, length: int, success: bool, policy: VectorPolicy, config: EvalConfig
) -> EpisodeResult:
    task, seed = slot.task, slot.seeds[episode]
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
    from .envs.metaworld import REWARD_VERSION

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
    sampler = _best_prompt_sampler(agent, data, "backbone", min(n_windows, _ERROR_BATCH), seed)
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
    sampler = _best_prompt_sampler(agent, data, "router", n_windows, seed)
    found = {}
    for i, task in enumerate(data.tasks):
        batch = sampler.sample_task(i, 0).to(agent.device, agent.dtype)
        weights = agent.model.router_weights(batch.window, batch.prompt)  # (B, T, L, E)
        found[task.name] = weights[batch.window.mask].mean(dim=(0, 1)).tolist()
    return found


def _best_prompt_sampler(agent: M3DTAgent, data: TaskDatasets, stage: Stage, batch_size: int, seed: int) -> BatchSampler:
    """Windows of one task at a time, prompted as the agent prompts itself."""
    best = {task.name: lookup(dict(agent.prompts), task.name, "task of this agent")[:1] for task in data.tasks}
    return BatchSampler(
        data, agent.statistics, best, agent.config, batch_size=batch_size, tasks_per_batch=1, seed=seed, stage=stage
    )
