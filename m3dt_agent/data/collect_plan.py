"""What `collect` is asked for, and the plan it follows: for each task which shards to make, and where they lie until then.

A plan's fingerprint is a JSON text of everything that the episodes depend on. It is recorded with the dataset (see `kept`), and
its hash names the folder of the shards, so that a later call finds the shards of the same plan and no others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..envs.make import registrations
from ..errors import ConfigError, DatasetError
from ..system.disk import path_errors
from ..system.platforms import locked
from ..tasks import TaskSpec, is_builtin
from .behavior import levels, parse_level
from .episodes import dataset_id, dataset_path
from .shards import PolicyFactory, ShardJob

EPISODES_PER_SHARD = 5
"""How many episodes a kill can cost each worker. Five Meta-World episodes are half a megabyte and take a few seconds."""

_MODULES_IN_FINGERPRINTS = {
    "m3dt_agent.data.behavior.catalog": "m3dt_agent.data.behavior",
    "m3dt_agent.data.behavior.policies": "m3dt_agent.data.behavior",
}
"""Fingerprints name a policy by its module. These modules have moved; datasets made before are recognised by the old name."""


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """What to collect for each task.

    levels: level → share of the episodes, e.g. {"expert": 0.7, "medium": 0.2, "random": 0.1}. A level may carry its own noise
        ("expert+0.3"); "custom" is the policy given to `collect`.
    noise: standard deviation of the Gaussian noise added to actions, for levels without a noise of their own.
    episodes: per task.
    source: last part of the dataset's name; None: the name of the only level, or "mixed".
    stop_after_success: N ends a Meta-World episode on its N-th successful step (1: at the first success); None: episodes run
        their full length, as in the published data.
    label_with: a level whose action in every state is kept beside the one that was done, as `demonstrator_actions`; None: the
        acting policy's own, where noise was added.

    Raises:
        ConfigError: a value out of range, or a level whose noise is not a number.
    """

    levels: Mapping[str, float] = field(default_factory=lambda: {"expert": 1.0})
    noise: float = 0.0
    episodes: int = 100
    seed: int = 0
    source: str | None = None
    stop_after_success: int | None = None
    label_with: str | None = None

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
        if self.label_with is not None and "+" in self.label_with:
            raise ConfigError(f"CollectConfig.label_with must be a level without noise; got {self.label_with!r}")
        if self.source is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", self.source):
            raise ConfigError(f"CollectConfig.source must be letters, digits, _ and - only; got {self.source!r}")

    @property
    def source_name(self) -> str:
        """The last part of the datasets' names: `source`, or the name of the only level, or "mixed"."""
        if self.source is not None:
            return self.source
        return parse_level(next(iter(self.levels)))[0] if len(self.levels) == 1 else "mixed"


@dataclass(slots=True)
class CollectPlan:
    """One dataset to be made. path: its folder. staging: the folder of its shards. seconds: spent on its shards so far."""

    task: TaskSpec
    config: CollectConfig
    fingerprint: str
    path: Path
    staging: Path
    jobs: tuple[ShardJob, ...]
    seconds: float = 0.0

    @property
    def labelled(self) -> bool:
        """Whether the episodes have `demonstrator_actions`."""
        config = self.config
        return config.label_with is not None or any(parse_level(level, config.noise)[1] > 0 for level in config.levels)

    def shard(self, job: ShardJob) -> Path:
        """Where the shard that `job` makes is stored."""
        return self.staging / job.file_name

    def missing(self) -> list[ShardJob]:
        """The jobs whose shards are not there yet."""
        return [job for job in self.jobs if not self.shard(job).exists()]

    def check_levels(self) -> None:
        """Checks that the task has every level.

        Raises:
            ConfigError: it does not; the message lists the levels it has.
        """
        valid = (*levels(self.task), "custom", *(("scripted",) if self.task.domain == "metaworld" else ()))
        for level in self.config.levels:
            if parse_level(level)[0] not in valid:
                raise ConfigError(f"task {self.task.name!r} has no behavior level {level!r}; it has {', '.join(valid)}")
        demonstrators = [level for level in valid if level not in ("custom", "random")]
        if self.config.label_with not in (None, *demonstrators):
            names = ", ".join(demonstrators)
            raise ConfigError(f"task {self.task.name!r} cannot be labelled with {self.config.label_with!r}; it has {names}")


def make_plan(task: TaskSpec, root: Path, config: CollectConfig, policy: PolicyFactory | None) -> CollectPlan:
    """The plan for the dataset of `task` under the Minari root `root`; makes nothing."""
    if not task.has_success:
        config = dataclasses.replace(config, stop_after_success=None)
    fingerprint = _fingerprint(task, config, policy)
    name = dataset_id(task, config.source_name)
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
    return CollectPlan(
        task=task,
        config=config,
        fingerprint=fingerprint,
        path=dataset_path(root, name),
        staging=root / ".collect" / f"{name.replace('/', '.')}-{digest}",
        jobs=_shard_jobs(task, config, policy),
    )


def _shard_jobs(task: TaskSpec, config: CollectConfig, policy: PolicyFactory | None) -> tuple[ShardJob, ...]:
    own = registrations([task])
    mixture = episode_levels(config.levels, config.episodes)
    return tuple(
        ShardJob(
            task=task,
            first=first,
            levels=tuple(mixture[first : first + EPISODES_PER_SHARD]),
            noise=config.noise,
            seed=config.seed,
            stop_after_success=config.stop_after_success,
            policy=policy,
            label_with=config.label_with,
            own=own,
        )
        for first in range(0, config.episodes, EPISODES_PER_SHARD)
    )


def episode_levels(shares: Mapping[str, float], episodes: int) -> list[str]:
    """The level of each episode. It is always the level furthest behind its share, so every prefix is mixed as asked.

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


def _fingerprint(task: TaskSpec, config: CollectConfig, policy: PolicyFactory | None) -> str:
    """Everything that the episodes depend on, as JSON. The source's name is left out: it changes no episode."""
    total = sum(config.levels.values())
    values = {
        "levels": {level: share / total for level, share in config.levels.items()},
        "noise": config.noise,
        "episodes": config.episodes,
        "seed": config.seed,
        "stop_after_success": config.stop_after_success,
        "policy": _identity(policy),
    }
    if config.label_with is not None:
        values["label_with"] = config.label_with
    if not is_builtin(task):  # a name of the 160 says which task it is
        values["task"] = task.to_dict()
    return json.dumps(values, sort_keys=True)


def _identity(policy: PolicyFactory | None) -> str | None:
    """A text for a policy factory that is the same in every process: a partial's parts, a function's name, else the repr."""
    if policy is None:
        return None
    if isinstance(policy, functools.partial):
        return f"{_identity(policy.func)}{policy.args}{policy.keywords}"
    name = getattr(policy, "__qualname__", None)
    if name is None:
        return repr(policy)
    return f"{_MODULES_IN_FINGERPRINTS.get(policy.__module__, policy.__module__)}.{name}"


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[None]:
    """Creates the folder of a plan's shards and holds its lock in the block; first removes the file that a kill cut short.

    Raises:
        DatasetError: another process holds the lock, because it makes the same dataset.
        DiskSpaceError: the disk is full.
        PathError: the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        while True:
            try:
                path.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(path, wait=False))
            except FileNotFoundError:  # another process has finished just now, and removed an empty folder
                continue
            except OSError:
                with path_errors(path):
                    raise
            if not held:
                raise DatasetError(f"another process is collecting into {path}; wait for it, or stop it")
            if path.exists():
                break
        for abandoned in path.glob(".writing-*"):
            abandoned.unlink(missing_ok=True)
        yield
