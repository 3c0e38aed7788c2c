"""Collects demonstrations: one Minari dataset per task, in parallel; it can be killed at any moment and called again.

    root/.collect/m3dt.<task>.<source>-v0-<hash of the plan>/      one folder per unfinished dataset
        00000-00004.safetensors                                    shards: a few whole episodes each, renamed into place
        00005-00009.safetensors
    root/m3dt/<task>/<source>-v0/data/main_data.hdf5               built from the shards by the parent; then the folder goes

Episode i of a task depends only on (config, task, i): its seed is a hash of (config.seed, task, i), and its level is the one
furthest behind its share of the mixture after i episodes. The data are therefore the same whichever worker makes a shard, and
however often a run was killed and called again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..envs.make import versions_of
from ..errors import ConfigError
from ..jobs import Engine, LocalProcesses, run_jobs, runs_here
from ..system.disk import user_path, write_file
from ..system.machine import shows_progress
from ..tasks import TaskSpec, is_builtin
from .behavior import parse_level
from .collect_plan import CollectConfig, CollectPlan, episode_levels, make_plan, staging_folder
from .episodes import Episode, check_episode, read_metadata, write_dataset
from .kept import Totals, is_kept, number_in, totals_from_metadata, totals_to_metadata
from .shards import PolicyFactory, close_environment, read_shard

__all__ = ["CollectConfig", "CollectSummary", "collect", "episode_levels"]

log = logging.getLogger(__name__)

FINGERPRINT_KEY = "m3dt_collect"
"""Metadata key of the fingerprint of datasets made here."""

_SIMULATORS: Mapping[str, tuple[str, ...]] = {
    "metaworld": ("metaworld", "mujoco", "gymnasium"),
    "dmcontrol": ("dm_control", "mujoco", "gymnasium"),
    "ant-dir": ("mujoco", "gymnasium"),
    "cheetah-vel": ("mujoco", "gymnasium"),
}
"""The packages whose versions decide what an episode looks like; recorded with the dataset."""


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """One finished dataset.

    mean_return: undiscounted. success_rate: share of the episodes; None where the task has no success. seconds: spent in this
    call, in all processes together. kept: whether the dataset was there before this call.
    """

    task: TaskSpec
    path: Path
    episodes: int
    steps: int
    mean_return: float
    mean_normalized_score: float
    success_rate: float | None
    seconds: float
    kept: bool


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

    Called again after a kill or Ctrl-C, it makes only the shards that are missing. It keeps a finished dataset of the same
    config. If `policy` is defined in the calling script, worker processes run the script again to find it: then the script must
    call this under `if __name__ == "__main__":`.

    Args:
        tasks: repeated tasks are collected once.
        root: the Minari root folder.
        config: what to collect.
        policy: makes the policy of the level "custom" for a task.
        workers: number of processes; None: one per core; 0: none, the episodes are made in this process.
        engine: where the episodes are made, instead of `workers` (see `jobs`); the datasets are always written here.
        progress: whether to show a progress bar; None: only on a terminal.
        overwrite: replace datasets of the same name that were made with another config.

    Raises:
        ConfigError: a level that a task does not have, "custom" without `policy` or `policy` without "custom", or a policy
            that cannot be pickled.
        DatasetError: a dataset of that name exists with another config and not `overwrite`, another process is making it, or an
            episode holds NaN, an infinity or a number beyond `data.limits`; the message names the episode and its seed.
        DiskSpaceError: the disk is full; finished shards stay.
        PathError: `root` cannot be written.
        M3DTError: an episode failed in a worker at every attempt; the message has its task and traceback.
    """
    root, engine = user_path(root), engine or LocalProcesses(workers)
    plans = [make_plan(task, root, config, policy) for task in dict.fromkeys(tasks)]
    _check(plans, policy, engine)
    pending = [plan for plan in plans if not _is_finished(plan, overwrite=overwrite)]
    made = {summary.task: summary for summary in _make(pending, root, engine, progress, overwrite=overwrite)}
    with contextlib.suppress(OSError):  # not there, or it holds other unfinished datasets
        (root / ".collect").rmdir()
    return [made.get(plan.task) or _kept(plan) for plan in plans]


def _check(plans: Sequence[CollectPlan], policy: PolicyFactory | None, engine: Engine) -> None:
    """Checks levels and policy, before anything is made."""
    for plan in plans:
        plan.check_levels()
        if not runs_here(engine):
            plan.jobs[0].own.require_importable()
    uses_custom = any(parse_level(level)[0] == "custom" for plan in plans for level in plan.config.levels)
    if plans and uses_custom != (policy is not None):
        raise ConfigError("the level 'custom' and the argument policy= go together: one of them is missing")
    if policy is not None and not runs_here(engine):
        try:
            ForkingPickler.dumps(policy)
        except Exception as error:
            raise ConfigError(f"policy must be picklable to reach the workers (or use workers=0): {error}") from error


def _is_finished(plan: CollectPlan, *, overwrite: bool) -> bool:
    finished = is_kept(plan.path, FINGERPRINT_KEY, plan.fingerprint, overwrite=overwrite)
    if finished:
        shutil.rmtree(plan.staging, ignore_errors=True)  # left by a kill between writing the dataset and removing its shards
    return finished


def _make(
    plans: Sequence[CollectPlan], root: Path, engine: Engine, progress: bool | None, *, overwrite: bool
) -> Iterator[CollectSummary]:
    """Makes the shards that are missing, and each dataset as soon as its last shard is there."""
    with contextlib.ExitStack() as stack:
        for plan in plans:
            stack.enter_context(staging_folder(plan.staging))
        plans = [plan for plan in plans if not _is_finished(plan, overwrite=overwrite)]  # by another process, until now
        todo = [(plan, job) for plan in plans for job in plan.missing()]
        left = {plan.task: len(plan.missing()) for plan in plans}
        yield from (_build(plan, root, overwrite=overwrite) for plan in plans if left[plan.task] == 0)
        episodes = sum(len(job.levels) for _, job in todo)
        bar = stack.enter_context(tqdm(total=episodes, unit="episode", desc="collect", disable=not shows_progress(progress)))
        stack.callback(close_environment)
        for number, shard in stack.enter_context(contextlib.closing(run_jobs([job for _, job in todo], engine))):
            plan, job = todo[number]
            write_file(plan.shard(job), shard.content)
            plan.seconds += shard.seconds
            left[plan.task] -= 1
            bar.update(len(job.levels))
            if left[plan.task] == 0:
                yield _build(plan, root, overwrite=overwrite)


def _build(plan: CollectPlan, root: Path, *, overwrite: bool) -> CollectSummary:
    """Writes the dataset from its shards, with one shard in memory at a time, and removes the shards."""
    began = time.monotonic()
    metadata: dict[str, str | int | float | bool] = {
        "m3dt_policy": json.dumps(dict(plan.config.levels), sort_keys=True),
        FINGERPRINT_KEY: plan.fingerprint,
        "m3dt_versions": json.dumps(_versions(plan.task)),
        "stop_after_success": plan.config.stop_after_success or 0,
        **_statistics(plan),
    }
    if plan.config.label_with is not None:
        metadata["m3dt_label_with"] = plan.config.label_with
    write_dataset(root, plan.task, plan.config.source_name, _read_shards(plan), metadata=metadata, replace=overwrite)
    shutil.rmtree(plan.staging)
    return _summary(plan, metadata, plan.seconds + time.monotonic() - began, kept=False)


def _versions(task: TaskSpec) -> dict[str, str]:
    if not is_builtin(task):
        return versions_of(task)
    return {name: version(name) for name in _SIMULATORS[task.domain]}


def _read_shards(plan: CollectPlan) -> Iterator[Episode]:
    for job in plan.jobs:
        file = plan.shard(job)
        for index, episode in enumerate(read_shard(file), job.first):
            check_episode(episode, plan.task, f"{file}: episode {index}", "; remove this file and collect again")
            if plan.labelled and episode.demonstrator_actions is None:
                yield dataclasses.replace(episode, demonstrator_actions=episode.actions)
            else:
                yield episode


def _statistics(plan: CollectPlan) -> dict[str, int | float]:
    """Metadata entries: totals and means over the episodes of the shards."""
    returns, scores, successes, steps = [], [], [], 0
    for episode in _read_shards(plan):
        success = None if episode.success is None else bool(episode.success.any())
        returns.append(episode.episode_return)
        scores.append(plan.task.normalized_score(episode.episode_return, success))
        successes.append(success)
        steps += episode.length
    found = totals_to_metadata(Totals(episodes=len(returns), steps=steps, mean_return=float(np.mean(returns))))
    found["m3dt_mean_normalized_score"] = float(np.mean(scores))
    if None not in successes:
        found["m3dt_success_rate"] = float(np.mean(np.array(successes, float)))
    return found


def _kept(plan: CollectPlan) -> CollectSummary:
    log.info("%s: kept, it was made before with the same config", plan.path)
    return _summary(plan, read_metadata(plan.path), 0.0, kept=True)


def _summary(plan: CollectPlan, metadata: Mapping[str, Any], seconds: float, *, kept: bool) -> CollectSummary:
    has_rate = "m3dt_success_rate" in metadata
    return CollectSummary(
        task=plan.task,
        path=plan.path,
        **totals_from_metadata(metadata),
        mean_normalized_score=float(number_in(metadata, "m3dt_mean_normalized_score")),
        success_rate=float(number_in(metadata, "m3dt_success_rate")) if has_rate else None,
        seconds=seconds,
        kept=kept,
    )
