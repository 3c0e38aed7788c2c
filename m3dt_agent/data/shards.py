"""Shards of episodes, and the worker processes that make them.

    parent ── pipe ── worker: one environment, one BLAS thread        job in, episodes rolled out, shard on disk, done out
           ── pipe ── worker: …

A shard is a safetensors file with a few episodes' arrays one after another, their `lengths` and `seeds`; it is renamed into
place, so one that exists is whole. Workers are spawned, get a shard at a time through their own pipe, and end with the parent.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from ..errors import DatasetError, M3DTError
from ..tasks import TaskSpec
from .behavior import BehaviorPolicy, NoisyPolicy, behavior_policy, from_callable, parse_level
from .disk import disk_space_errors, write_file
from .episodes import Episode

PolicyFactory: TypeAlias = Callable[[TaskSpec], BehaviorPolicy]
"""Makes the policy of the level "custom" for a task, inside a worker; picklable unless workers=0."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to make at `path`: episodes first … first + len(levels) - 1 of a task, one level each (see `CollectConfig`)."""

    task: TaskSpec
    path: Path
    first: int
    levels: tuple[str, ...]
    noise: float
    seed: int
    stop_after_success: int | None
    policy: PolicyFactory | None


@dataclass(frozen=True, slots=True)
class Done:
    """A shard that is on disk, and the seconds it took."""

    job: Job
    seconds: float


@dataclass(frozen=True, slots=True)
class _Failure:
    """What went wrong in a worker: the package's own error and its message, or M3DTError and the traceback of any other."""

    kind: type[M3DTError]
    text: str


def rollout(
    env: gym.Env[Any, Any], task: TaskSpec, policy: BehaviorPolicy, seed: int, stop_after_success: int | None = None
) -> Episode:
    """One whole episode of `env` under `policy`, both reset with `seed`; it ends early, as terminated, on the step that is the
    `stop_after_success`-th counted from the first success (1: the first success itself)."""
    length = task.max_episode_steps
    observations = np.empty((length + 1, task.obs_dim), np.float32)
    actions = np.empty((length, task.act_dim), np.float32)
    rewards = np.empty(length, np.float32)
    ends = np.zeros((2, length), bool)  # terminated, truncated
    success = np.zeros(length, bool)
    observations[0], _ = env.reset(seed=seed)
    policy.reset(seed)
    t, over = 0, False
    while not over:
        actions[t] = policy(observations[t])
        observations[t + 1], rewards[t], terminated, truncated, info = env.step(actions[t])
        success[t] = info.get("success", False)
        stop = stop_after_success is not None and int(success[: t + 1].sum()) >= stop_after_success
        ends[:, t] = (terminated or stop, truncated)
        over = bool(ends[:, t].any())
        t += 1
    return Episode(
        observations=observations[: t + 1],
        actions=actions[:t],
        rewards=rewards[:t],
        terminations=ends[0, :t],
        truncations=ends[1, :t],
        success=success[:t] if task.domain == "metaworld" else None,
        seed=seed,
    )


def episode_seed(seed: int, task: TaskSpec, index: int) -> int:
    """The 32-bit seed of episode `index`: a hash of (seed, task, index), the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task.name}/{index}".encode()).digest()[:4], "little")


class _Collector:
    """Makes shards, keeping the last task's environment open between them."""

    def __init__(self) -> None:
        self._env: gym.Env[Any, Any] | None = None
        self._task: TaskSpec | None = None

    def __call__(self, job: Job) -> Done:
        began = time.monotonic()
        env = self._environment(job.task)
        policies = {level: _make_policy(job, level) for level in set(job.levels)}
        episodes = []
        for index, level in enumerate(job.levels, job.first):
            if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
                raise SystemExit(1)
            seed = episode_seed(job.seed, job.task, index)
            episodes.append(rollout(env, job.task, policies[level], seed, job.stop_after_success))
        with disk_space_errors(job.path):
            write_file(job.path, _encode(episodes))
        return Done(job, time.monotonic() - began)

    def _environment(self, task: TaskSpec) -> gym.Env[Any, Any]:
        if self._env is None or self._task != task:
            self.close()
            self._env, self._task = gym.make(task.env_id, disable_env_checker=True), task
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None


def _make_policy(job: Job, level: str) -> BehaviorPolicy:
    name, noise = parse_level(level, job.noise)
    if name == "custom":
        assert job.policy is not None
        custom = job.policy(job.task)
        checked = from_callable(job.task, custom, reset=custom.reset)
        return checked if noise == 0 else NoisyPolicy(checked, noise)
    return behavior_policy(job.task, name, noise)


def run_jobs(jobs: Sequence[Job], workers: int | None) -> Generator[Done]:
    """Yields each job when its shard is on disk; stops every worker however it is left.

    workers: how many processes (None: one per core; 0: none, in this process).

    Raises:
        DiskSpaceError: the disk is full.
        M3DTError: an episode failed, or a worker died; the message has the task, the episodes and the worker's traceback.
    """
    if workers == 0:
        collector = _Collector()
        try:
            yield from map(collector, jobs)
        finally:
            collector.close()
        return
    count = min(len(os.sched_getaffinity(0)) if workers is None else workers, len(jobs))
    waiting = deque(jobs)
    with _started_workers(count) as processes:
        running: dict[Connection, Job] = {}
        for connection in processes:
            running[connection] = waiting.popleft()
            connection.send(running[connection])
        while running:
            for connection in [ready for ready in wait(list(running)) if isinstance(ready, Connection)]:
                job = running.pop(connection)
                done = _receive(connection, processes[connection], job)
                if waiting:
                    running[connection] = waiting.popleft()
                    connection.send(running[connection])
                yield done


def _receive(connection: Connection, process: SpawnProcess, job: Job) -> Done:
    what = f"{job.task.name}: collecting episodes {job.first} to {job.first + len(job.levels) - 1}"
    try:
        reply = connection.recv()
    except (EOFError, ConnectionError):
        process.join(5)
        raise M3DTError(f"{what}: the worker died (exit code {process.exitcode})") from None
    if isinstance(reply, _Failure):
        raise reply.kind(f"{what}{reply.text}")
    assert isinstance(reply, Done)
    return reply


@contextlib.contextmanager
def _started_workers(count: int) -> Iterator[dict[Connection, SpawnProcess]]:
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            with _one_thread():
                process.start()
            theirs.close()
            processes[ours] = process
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for connection, process in processes.items():
            process.join()
            connection.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started inside the block see one BLAS thread: their cores are taken by the other workers."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _work(connection: Connection) -> None:
    """A worker: jobs in, `Done` or `_Failure` out, until the parent is gone. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    collector = _Collector()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            try:
                connection.send(collector(connection.recv()))
            except (EOFError, ConnectionError):
                raise
            except M3DTError as error:
                connection.send(_Failure(type(error), f": {error}"))
            except Exception:
                connection.send(_Failure(M3DTError, f" failed:\n{traceback.format_exc()}"))


def _encode(episodes: Sequence[Episode]) -> bytes:
    """A shard: the episodes' arrays one after another, their lengths and seeds."""
    names = ["observations", "actions", "rewards", "terminations", "truncations"]
    if episodes[0].success is not None:
        names.append("success")
    tensors = {name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in names}
    tensors["lengths"] = np.array([episode.length for episode in episodes], np.int64)
    tensors["seeds"] = np.array([episode.seed for episode in episodes], np.int64)
    content: bytes = safetensors.numpy.save(tensors)
    return content


def read_shard(path: Path) -> Iterator[Episode]:
    """The episodes of a shard, in order.

    Raises:
        DatasetError: the file is damaged.
    """
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except SafetensorError as error:
        raise DatasetError(f"{path} is damaged ({error}); remove it and collect again") from error
    end = np.cumsum(tensors["lengths"])
    for i, (length, seed) in enumerate(zip(tensors["lengths"], tensors["seeds"], strict=True)):
        steps = slice(end[i] - length, end[i])
        yield Episode(
            observations=tensors["observations"][steps.start + i : steps.stop + i + 1],
            actions=tensors["actions"][steps],
            rewards=tensors["rewards"][steps],
            terminations=tensors["terminations"][steps],
            truncations=tensors["truncations"][steps],
            success=tensors["success"][steps] if "success" in tensors else None,
            seed=int(seed),
        )
