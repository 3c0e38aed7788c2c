"""Collecting demonstrations: one Minari dataset per task, in parallel, killable at any moment.

    root/.collect/m3dt.<task>.<source>-v0-<hash of the config>/      one folder per unfinished dataset
        00000-00004.safetensors                                      shards: a few whole episodes each, renamed into place
        00005-00009.safetensors
    root/m3dt/<task>/<source>-v0/data/main_data.hdf5                 built from the shards by the parent, then the folder goes

Episode i of a task depends on (config, task, i) alone: its seed is a hash of (config.seed, task, i), and its level is the one
furthest behind its share of the mixture after i episodes. So which worker makes a shard, and whether a run was killed and
called again in between, changes nothing in the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..disk import disk_space_errors, write_file
from ..errors import ConfigError, DatasetError
from ..jobs import Engine, LocalProcesses, run_jobs, runs_here
from ..tasks import Domain, TaskSpec
from .behavior import levels, parse_level
from .episodes import Episode, dataset_id, dataset_path, read_metadata, write_dataset
from .shards import PolicyFactory, ShardJob, close_environment, read_shard

log = logging.getLogger(__name__)

EPISODES_PER_SHARD = 5
"""What a kill can cost each worker at most. Five Meta-World episodes are half a megabyte and a few seconds."""

_SIMULATORS: Mapping[Domain, tuple[str, ...]] = {
    "metaworld": ("metaworld", "mujoco", "gymnasium"),
    "dmcontrol": ("dm_control", "mujoco", "gymnasium"),
    "ant-dir": ("mujoco", "gymnasium"),
    "cheetah-vel": ("mujoco", "gymnasium"),
}
"""The packages whose versions decide what an episode looks like; recorded with the dataset."""
_MAIN_FILE = Path("data", "main_data.hdf5")  # Minari's layout


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """What to collect for each task.

    levels: level → share of the episodes, e.g. {"expert": 0.7, "medium": 0.2, "random": 0.1}; a level may carry its own noise
    ("expert+0.3"), and "custom" is the policy given to `collect`. noise: deviation of the Gaussian action noise of the other
    levels. source: the dataset's last name; None is the level's name, or "mixed". stop_after_success: N ends a Meta-World
    episode on its N-th successful step (1: at the first success); None runs its full length, as published.
    """

    levels: Mapping[str, float] = field(default_factory=lambda: {"expert": 1.0})
    noise: float = 0.0
    episodes: int = 100
    seed: int = 0
    source: str | None = None
    stop_after_success: int | None = None

    def __post_init__(self) -> None:
        if not self.levels or not all(math.isfinite(share) and share > 0 for share in self.levels.values()):
            raise ConfigError(f"CollectConfig.levels must map levels to shares > 0; got {dict(self.levels)!r}")
        for level in self.levels:
            parse_level(level, self.noise)
        if self.episodes < 1:
            raise ConfigError(f"CollectConfig.episodes must be an integer >= 1; got {self.episodes!r}")
        if self.seed < 0:
            raise ConfigError(f"CollectConfig.seed must be an integer >= 0; got {self.seed!r}")
        if self.stop_after_success is not None and self.stop_after_success < 1:
            raise ConfigError(f"CollectConfig.stop_after_success must be None or >= 1; got {self.stop_after_success!r}")
        if self.source is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", self.source):
            raise ConfigError(f"CollectConfig.source must be letters, digits, _ and - only; got {self.source!r}")

    @property
    def source_name(self) -> str:
        """The last name of the datasets: `source`, or the one level's name, or "mixed"."""
        if self.source is not None:
            return self.source
        return parse_level(next(iter(self.levels)))[0] if len(self.levels) == 1 else "mixed"


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """One finished dataset. success_rate is None where the task has no success; `kept`: it was there before this call."""

    task: TaskSpec
    path: Path
    episodes: int
    steps: int
    mean_return: float
    mean_normalized_score: float
    success_rate: float | None
    seconds: float
    kept: bool


@dataclass(slots=True)
class _Plan:
    """One dataset in the making."""

    task: TaskSpec
    config: CollectConfig
    fingerprint: str
    path: Path
    staging: Path
    jobs: tuple[ShardJob, ...]
    seconds: float = 0.0

    def missing(self) -> list[ShardJob]:
        return [job for job in self.jobs if not self.shard(job).exists()]

    def shard(self, job: ShardJob) -> Path:
        return self.staging / job.file_name


def collect(
    tasks: Sequence[TaskSpec],
    root: str | Path,
    config: CollectConfig,
    *,
    policy: PolicyFactory | None = None,
    workers: int | None = None,
    engine: Engine | None = None,
    progress: bool | None = None,
    overwrite: bool = False,
) -> list[CollectSummary]:
    """Collects one dataset per task under the Minari root `root`; returns their summaries in the order of `tasks`.

    Called again after a kill or Ctrl-C, it continues with the shards that are missing. A finished dataset of the same config is
    kept. workers: processes (None: one per core; 0: none, in this process). engine: where the episodes are made instead, as in
    `jobs`; the datasets are written here. progress: None shows a bar on a terminal.
    `policy` makes the policy of the level "custom". Workers import the calling script, which therefore calls this under
    `if __name__ == "__main__":`.

    Raises:
        ConfigError: a level that a task does not have, "custom" without `policy` or the reverse, or an unpicklable policy.
        DatasetError: a dataset of that name exists with another config and not `overwrite`, or another process is making it.
        DiskSpaceError: the disk is full; finished shards stay.
        M3DTError: an episode failed in a worker, again and again; the message has its task and traceback.
    """
    root, engine = Path(root), engine or LocalProcesses(workers)
    plans = [_plan(task, root, config, policy) for task in dict.fromkeys(tasks)]
    _check(plans, policy, engine, overwrite)
    summaries: dict[str, CollectSummary] = {}
    with contextlib.ExitStack() as stack:
        pending = {plan.task.name: plan for plan in plans if not _is_finished(plan)}
        for plan in pending.values():
            stack.enter_context(_staging_folder(plan.staging))
        todo = [(plan, job) for plan in pending.values() for job in plan.missing()]
        left = {name: len(plan.missing()) for name, plan in pending.items()}
        summaries.update((name, _build(plan, root)) for name, plan in pending.items() if left[name] == 0)
        bar = stack.enter_context(_progress_bar(sum(len(job.levels) for _, job in todo), progress))
        stack.callback(close_environment)
        for number, shard in stack.enter_context(contextlib.closing(run_jobs([job for _, job in todo], engine))):
            plan, job = todo[number]
            with disk_space_errors(plan.shard(job)):
                write_file(plan.shard(job), shard.content)
            plan.seconds += shard.seconds
            left[plan.task.name] -= 1
            bar.update(len(job.levels))
            if left[plan.task.name] == 0:
                summaries[plan.task.name] = _build(plan, root)
    with contextlib.suppress(OSError):  # not there, or other datasets are unfinished in it
        (root / ".collect").rmdir()
    return [summaries.get(plan.task.name) or _kept(plan) for plan in plans]


def episode_levels(shares: Mapping[str, float], episodes: int) -> list[str]:
    """The level of each episode: always the one furthest behind its share, so that every prefix is mixed as asked.

    >>> episode_levels({"expert": 0.5, "medium": 0.25, "random": 0.25}, 8)
    ['expert', 'medium', 'random', 'expert', 'expert', 'medium', 'random', 'expert']
    """
    total = sum(shares.values())
    names = sorted(shares)
    counts = dict.fromkeys(names, 0)
    chosen = []
    for i in range(1, episodes + 1):
        level = max(names, key=lambda name: i * shares[name] / total - counts[name])
        counts[level] += 1
        chosen.append(level)
    return chosen


# -- planning ------------------------------------------------------------------------------------------------------------------


def _plan(task: TaskSpec, root: Path, config: CollectConfig, policy: PolicyFactory | None) -> _Plan:
    if task.domain != "metaworld":
        config = dataclasses.replace(config, stop_after_success=None)
    fingerprint = _fingerprint(config, policy)
    name = dataset_id(task, config.source_name)
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
    staging = root / ".collect" / f"{name.replace('/', '.')}-{digest}"
    mixture = episode_levels(config.levels, config.episodes)
    jobs = [
        ShardJob(
            task,
            first,
            tuple(mixture[first : first + EPISODES_PER_SHARD]),
            config.noise,
            config.seed,
            config.stop_after_success,
            policy,
        )
        for first in range(0, config.episodes, EPISODES_PER_SHARD)
    ]
    return _Plan(task, config, fingerprint, dataset_path(root, name), staging, tuple(jobs))


def _fingerprint(config: CollectConfig, policy: PolicyFactory | None) -> str:
    """Everything the episodes depend on, as JSON; the source's name is not among it."""
    total = sum(config.levels.values())
    values = {
        "levels": {level: share / total for level, share in config.levels.items()},
        "noise": config.noise,
        "episodes": config.episodes,
        "seed": config.seed,
        "stop_after_success": config.stop_after_success,
        "policy": _identity(policy),
    }
    return json.dumps(values, sort_keys=True)


def _identity(policy: PolicyFactory | None) -> str | None:
    """A policy factory's name, the same in every process: a partial by its parts, a function by its name, else the repr."""
    if policy is None:
        return None
    if isinstance(policy, functools.partial):
        return f"{_identity(policy.func)}{policy.args}{policy.keywords}"
    name = getattr(policy, "__qualname__", None)
    return repr(policy) if name is None else f"{policy.__module__}.{name}"


def _check(plans: Sequence[_Plan], policy: PolicyFactory | None, engine: Engine, overwrite: bool) -> None:
    """Everything that can be wrong, before anything is made."""
    for plan in plans:
        _check_levels(plan)
        if not overwrite and plan.path.exists() and (found := _existing_fingerprint(plan.path)) != plan.fingerprint:
            raise DatasetError(
                f"{plan.path} exists and was made with {found}; asked for was {plan.fingerprint}. "
                "Choose another source name, or pass overwrite=True"
            )
    uses_custom = any(parse_level(level)[0] == "custom" for plan in plans for level in plan.config.levels)
    if plans and uses_custom != (policy is not None):
        raise ConfigError("the level 'custom' and the argument policy= go together: one of them is missing")
    if policy is not None and not runs_here(engine):
        try:
            ForkingPickler.dumps(policy)
        except Exception as error:
            raise ConfigError(f"policy must be picklable to reach the workers (or use workers=0): {error}") from error


def _check_levels(plan: _Plan) -> None:
    valid = (*levels(plan.task), "custom", *(("scripted",) if plan.task.domain == "metaworld" else ()))
    for level in plan.config.levels:
        if parse_level(level)[0] not in valid:
            raise ConfigError(f"task {plan.task.name!r} has no behavior level {level!r}; it has {', '.join(valid)}")


def _existing_fingerprint(path: Path) -> str:
    if not (path / _MAIN_FILE).exists():
        raise DatasetError(f"{path} exists but holds no {_MAIN_FILE}; remove it, or pass overwrite=True")
    return str(read_metadata(path).get("m3dt_collect", "something other than collect"))


def _is_finished(plan: _Plan) -> bool:
    finished = (plan.path / _MAIN_FILE).exists() and _existing_fingerprint(plan.path) == plan.fingerprint
    if finished:
        shutil.rmtree(plan.staging, ignore_errors=True)  # a kill may have come between the last rename and this
    return finished


@contextlib.contextmanager
def _staging_folder(path: Path) -> Iterator[None]:
    """Holds the folder's lock, so that nobody else makes the same dataset; clears what a kill left half-written."""
    with disk_space_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"another process is collecting into {path}; wait for it, or stop it") from None
        _remove_half_written(path)
        try:
            yield
        finally:
            _remove_half_written(path)  # by workers that were stopped
    finally:
        os.close(descriptor)


def _remove_half_written(folder: Path) -> None:
    for abandoned in folder.glob(".writing-*"):
        abandoned.unlink(missing_ok=True)


def _progress_bar(episodes: int, progress: bool | None) -> tqdm[Any]:
    show = sys.stderr.isatty() if progress is None else progress
    return tqdm(total=episodes, unit="episode", desc="collect", disable=not show)


# -- shards and datasets -------------------------------------------------------------------------------------------------------


def _read_shards(plan: _Plan) -> Iterator[Episode]:
    for job in plan.jobs:
        yield from read_shard(plan.shard(job))


def _build(plan: _Plan, root: Path) -> CollectSummary:
    """The dataset from its shards, in memory of one shard; then the shards go."""
    began = time.monotonic()
    statistics = _statistics(plan)
    metadata: dict[str, str | int | float | bool] = {
        "m3dt_policy": json.dumps(dict(plan.config.levels), sort_keys=True),
        "m3dt_collect": plan.fingerprint,
        "m3dt_versions": json.dumps({name: version(name) for name in _SIMULATORS[plan.task.domain]}),
        "stop_after_success": plan.config.stop_after_success or 0,
        **{f"m3dt_{name}": value for name, value in statistics.items()},
    }
    if plan.path.exists():  # overwrite=True: moved away in one step, gone with the shards
        os.rename(plan.path, plan.staging / f"replaced-{os.getpid()}")
    write_dataset(root, plan.task, plan.config.source_name, _read_shards(plan), metadata=metadata)
    shutil.rmtree(plan.staging)
    return _summary(plan, metadata, plan.seconds + time.monotonic() - began, kept=False)


def _statistics(plan: _Plan) -> dict[str, int | float]:
    """Totals and means over the episodes of the shards."""
    returns, scores, successes, steps = [], [], [], 0
    for episode in _read_shards(plan):
        success = None if episode.success is None else bool(episode.success.any())
        returns.append(episode.episode_return)
        scores.append(plan.task.normalized_score(episode.episode_return, success))
        successes.append(success)
        steps += episode.length
    found: dict[str, int | float] = {"episodes": len(returns), "steps": steps}
    found |= {"mean_return": float(np.mean(returns)), "mean_normalized_score": float(np.mean(scores))}
    return found | ({} if None in successes else {"success_rate": float(np.mean(np.array(successes, float)))})


def _kept(plan: _Plan) -> CollectSummary:
    log.info("%s: kept, it was made before with the same config", plan.path)
    return _summary(plan, read_metadata(plan.path), 0.0, kept=True)


def _summary(plan: _Plan, metadata: Mapping[str, Any], seconds: float, *, kept: bool) -> CollectSummary:
    rate = metadata.get("m3dt_success_rate")
    return CollectSummary(
        task=plan.task,
        path=plan.path,
        episodes=int(metadata["m3dt_episodes"]),
        steps=int(metadata["m3dt_steps"]),
        mean_return=float(metadata["m3dt_mean_return"]),
        mean_normalized_score=float(metadata["m3dt_mean_normalized_score"]),
        success_rate=None if rate is None else float(rate),
        seconds=seconds,
        kept=kept,
    )
