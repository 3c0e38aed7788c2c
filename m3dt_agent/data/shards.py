"""Makes and reads shards of episodes, the pieces in which a collection is made.

    lengths 200 137 …   seeds …   observations │ actions │ rewards │ …   the arrays of a few episodes, one episode after another

If one of the episodes has labels (`demonstrator_actions`), all have; they are the actions in those without.

A shard is the content of a safetensors file. A job runs a few episodes, in whatever process, and returns a shard; the caller
writes it to disk.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from ..envs.make import Registrations, make_env
from ..errors import DatasetError, PathError
from ..system.disk import open_regular
from ..tasks import TaskSpec
from .behavior import behavior_policy, parse_level
from .behavior.policies import BehaviorPolicy, Float32Array, LabelledPolicy, NoisyPolicy, from_callable
from .episodes import Episode, check_episode

_AFTER_A_BAD_EPISODE = "; it would be the same the next time, so mend the policy, or choose another level, noise or seed"
_LARGEST_SHARD = 1_000_000_000  # bytes; five episodes of the widest task have 0.6 million

PolicyFactory: TypeAlias = Callable[[TaskSpec], BehaviorPolicy | Callable[[Float32Array], Any]]
"""Makes the policy of the level "custom" for a task, in a worker: a `BehaviorPolicy`, or any function observation → action. It
must be picklable unless workers=0."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Makes one shard: episodes first … first + len(levels) - 1 of a task. The other fields are as in `CollectConfig`.

    levels: the level of each of the episodes. own: as from `registrations`.
    """

    task: TaskSpec
    first: int
    levels: tuple[str, ...]
    noise: float
    seed: int
    stop_after_success: int | None
    policy: PolicyFactory | None
    label_with: str | None = None
    own: Registrations = field(default_factory=Registrations)

    @property
    def name(self) -> str:
        """What the job does, for error messages."""
        return f"{self.task.name}: collecting episodes {self.first} to {self.first + len(self.levels) - 1}"

    @property
    def file_name(self) -> str:
        """The shard's file name; names sort in the order of the episodes."""
        return f"{self.first:05d}-{self.first + len(self.levels) - 1:05d}.safetensors"

    def __call__(self) -> Shard:
        """Runs the episodes. The task's environment stays open for the next job of this process (see `close_environment`).

        Raises:
            DatasetError: an episode holds a number that no dataset may hold, such as NaN.
        """
        began = time.monotonic()
        self.own.adopt()
        env = _environment(self.task)
        policies = {level: _make_policy(self, level, env) for level in set(self.levels)}
        episodes = []
        for index, level in enumerate(self.levels, self.first):
            seed = episode_seed(self.seed, self.task, index)
            episodes.append(rollout(env, self.task, policies[level], seed, self.stop_after_success))
            check_episode(episodes[-1], self.task, f"episode {index} (level {level!r}, seed {seed})", _AFTER_A_BAD_EPISODE)
        return Shard(_encode(episodes), time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class Shard:
    """The content of a shard's file, and the seconds it took to make."""

    content: bytes
    seconds: float


def rollout(
    env: gym.Env[Any, Any], task: TaskSpec, policy: BehaviorPolicy, seed: int, stop_after_success: int | None = None
) -> Episode:
    """Runs one whole episode of `env` under `policy`; both are reset with `seed`.

    They get copies of observations and actions, so that what they do with them does not change the recording. The episode has
    `demonstrator_actions` if the policy has a `label` (see `BehaviorPolicy`).

    stop_after_success: N ends the episode early, as terminated, on its N-th successful step (1: at the first success).
    """
    length = task.max_episode_steps
    observations = np.empty((length + 1, task.obs_dim), np.float32)
    actions, labels = np.empty((2, length, task.act_dim), np.float32)
    rewards = np.empty(length)  # an infinity only where float32 has none
    ends = np.zeros((2, length), bool)  # terminated, truncated
    success = np.zeros(length, bool)
    observations[0], _ = env.reset(seed=seed)
    policy.reset(seed)
    labelled, rewarded = hasattr(policy, "label"), getattr(policy, "rewarded", None)
    t, over = 0, False
    while not over:
        actions[t] = policy(observations[t].copy())
        if labelled:
            labels[t] = policy.label  # type: ignore[attr-defined]
        observations[t + 1], rewards[t], terminated, truncated, info = env.step(actions[t].copy())
        if rewarded is not None:
            rewarded(float(rewards[t]))
        success[t] = info.get("success", False)
        stop = stop_after_success is not None and int(success[: t + 1].sum()) >= stop_after_success
        ends[:, t] = (terminated or stop, truncated)
        over = bool(ends[:, t].any())
        t += 1
    with np.errstate(over="ignore"):  # the reward becomes an infinity, which is reported where episodes are checked
        return Episode(
            observations=observations[: t + 1],
            actions=actions[:t],
            rewards=rewards[:t].astype(np.float32),
            terminations=ends[0, :t],
            truncations=ends[1, :t],
            success=success[:t] if task.has_success else None,
            seed=seed,
            demonstrator_actions=labels[:t] if labelled else None,
        )


def episode_seed(seed: int, task: TaskSpec, index: int) -> int:
    """The 32-bit seed of episode `index`: a hash of (seed, task name, index), so it is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task.name}/{index}".encode()).digest()[:4], "little")


_open_environments: dict[TaskSpec, gym.Env[Any, Any]] = {}
"""At most one environment, by its task: the one that this process keeps open between jobs."""


def _environment(task: TaskSpec) -> gym.Env[Any, Any]:
    if task not in _open_environments:
        close_environment()
        _open_environments[task] = make_env(task)
    return _open_environments[task]


def close_environment() -> None:
    """Closes the environment that jobs left open in this process."""
    while _open_environments:
        _open_environments.popitem()[1].close()


def _make_policy(job: ShardJob, level: str, env: gym.Env[Any, Any]) -> BehaviorPolicy:
    if job.label_with is not None:
        return LabelledPolicy(_make_actor(job, level, env), behavior_policy(job.task, job.label_with, env=env))
    return _make_actor(job, level, env)


def _make_actor(job: ShardJob, level: str, env: gym.Env[Any, Any]) -> BehaviorPolicy:
    name, noise = parse_level(level, job.noise)
    if name == "custom":
        assert job.policy is not None
        custom = job.policy(job.task)
        checked = from_callable(job.task, custom, reset=getattr(custom, "reset", None))
        return checked if noise == 0 else NoisyPolicy(checked, noise)
    return behavior_policy(job.task, name, noise, env=env)


def _encode(episodes: Sequence[Episode]) -> bytes:
    names = ["observations", "actions", "rewards", "terminations", "truncations"]
    if episodes[0].success is not None:
        names.append("success")
    tensors = {name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in names}
    labels = [episode.demonstrator_actions for episode in episodes]
    if any(label is not None for label in labels):
        either = (episode.actions if label is None else label for episode, label in zip(episodes, labels, strict=True))
        tensors["demonstrator_actions"] = np.concatenate(list(either))
    tensors["lengths"] = np.array([episode.length for episode in episodes], np.int64)
    tensors["seeds"] = np.array([episode.seed for episode in episodes], np.int64)
    content: bytes = safetensors.numpy.save(tensors)
    return content


def read_shard(path: Path) -> Iterator[Episode]:
    """The episodes of a shard, in order. Only that they can be read is checked.

    Raises:
        DatasetError: the file is damaged; the message says what to do.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_SHARD)
        tensors = safetensors.numpy.load(content)
        lengths, seeds = tensors["lengths"].tolist(), tensors["seeds"].tolist()
        for i, (end, length, seed) in enumerate(zip(itertools.accumulate(lengths), lengths, seeds, strict=True)):
            steps = slice(end - length, end)
            yield Episode(
                observations=tensors["observations"][steps.start + i : steps.stop + i + 1],
                actions=tensors["actions"][steps],
                rewards=tensors["rewards"][steps],
                terminations=tensors["terminations"][steps],
                truncations=tensors["truncations"][steps],
                success=tensors["success"][steps] if "success" in tensors else None,
                seed=int(seed),
                demonstrator_actions=tensors["demonstrator_actions"][steps] if "demonstrator_actions" in tensors else None,
            )
    except (SafetensorError, PathError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise  # of whoever takes the episodes
        raise DatasetError(f"{path} is damaged ({error}); remove it and collect again") from error
