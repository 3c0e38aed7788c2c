"""The demonstrations that cells train on. They are the same for every method and collected once per machine.

    <root>/m3dt/<task>/mixture-200-seed0-v0          200 episodes of full length
    <root>/m3dt/<task>/expert-24-seed0-stop10-v0     24 episodes; those of Meta-World end on the tenth step with success

A data condition says which share of a task's episodes each behavior level gives:

    mixture   random 1, low 1, middle 2, noisy expert 2, expert 2
    expert    noisy expert 1, expert 1
    best      the planner if the task has one, else noisy expert 1, expert 3
    policy    noisy expert 1, expert 3

The first two banks of the package were trained on `best`, the third on `policy` (`pretrained.md` says why).

Low and middle are the novice and medium snapshots. Meta-World has no snapshots, so its scripted policy with more noise stands
for them. A level that a task lacks is left out, and the others keep their proportions. Collection is `m3dt_agent.data.collect`:
it continues after a kill, and keeps a finished dataset of the same config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3dt_agent.data.behavior import PLANNER_LEVEL, levels
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.shards import episode_seed
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.quickstart import NOISE
from m3dt_agent.system.disk import file_lock
from m3dt_agent.tasks import TaskSpec, lookup, resolve
from m3dt_agent.training.stage_inputs import data_fingerprint

CONDITIONS = ("mixture", "expert", "best", "policy")
STEPS_DOWN: Mapping[str, Mapping[str, float]] = {"metaworld": {"expert+1.0": 1.0, "expert+0.5": 2.0}}
"""Domain → level → share, for what stands for novice and medium if there are no snapshots. On every third Meta-World task, 3
episodes each, the success rate was 47% with noise 1.0, 73% with 0.5, and 94% with the noisy expert's 0.2."""
SNAPSHOTS: Mapping[str, float] = {"novice": 1.0, "medium": 2.0}
HISTOGRAM_BINS = 10


def level_shares(task: TaskSpec, condition: str) -> dict[str, float]:
    """Behavior level → share of a task's episodes under a data condition.

    Raises:
        UnknownTaskError: no condition has this name. ConfigError: a task that is not among the 160, which has no such levels.
    """
    if task.domain not in NOISE:
        raise ConfigError(f"the benchmark demonstrates the 160 tasks by their behavior policies; {task.name!r} has none")
    noisy = f"expert+{NOISE[task.domain]}"
    found = lookup({name: name for name in CONDITIONS}, condition, "data condition")
    if found == "best" and PLANNER_LEVEL in levels(task):
        return {PLANNER_LEVEL: 1.0}
    if found != "mixture":
        return {"expert": 1.0 if found == "expert" else 3.0, noisy: 1.0}
    between = STEPS_DOWN.get(task.domain, {level: share for level, share in SNAPSHOTS.items() if level in levels(task)})
    return {"random": 1.0, **between, noisy: 2.0, "expert": 2.0}


def source_name(condition: str, episodes: int, seed: int, stop_after_success: int | None) -> str:
    """The last part of a dataset's name. The shares are not in it: the dataset records them, and collection compares them."""
    return f"{condition}-{episodes}-seed{seed}" + (f"-stop{stop_after_success}" if stop_after_success else "")


def prepare(
    root: Path,
    tasks: Sequence[str | TaskSpec],
    condition: str,
    episodes: int,
    seed: int,
    workers: int | None = None,
    *,
    stop_after_success: int | None = None,
    progress: bool | None = None,
) -> TaskDatasets:
    """Opens the datasets of `tasks` under the Minari root `root`, after collecting those that are missing.

    If another process is preparing data under the same root, this one waits for it.

    Args:
        episodes: per task; the prompts are taken from them.
        seed: of the collection; an episode's own seed is a hash of it, the task and the episode's index.
        workers: processes (None: one per core; 0: none).

    Raises:
        UnknownTaskError: no such task or condition.
        DatasetError: a dataset of this name was made with other shares.
        DiskSpaceError, M3DTError: as `collect`.
    """
    source = source_name(condition, episodes, seed, stop_after_success)
    specs = resolve(tasks)
    alike: dict[tuple[tuple[str, float], ...], list[TaskSpec]] = {}
    for task in specs:
        alike.setdefault(tuple(level_shares(task, condition).items()), []).append(task)
    with file_lock(root / ".prepare.lock"):
        for shares, group in alike.items():
            config = CollectConfig(
                levels=dict(shares), episodes=episodes, seed=seed, source=source, stop_after_success=stop_after_success
            )
            collect(group, root, config, workers=workers, progress=progress)
        return TaskDatasets.open(root, specs, source)


def collection_seeds(tasks: Iterable[str | TaskSpec], episodes: int, seed: int) -> dict[int, str]:
    """Episode seed → task, for all episodes that `prepare` collects with these arguments."""
    return {episode_seed(seed, task, index): task.name for task in resolve(tasks) for index in range(episodes)}


def require_disjoint(tasks: Iterable[str | TaskSpec], episodes: int, seed: int, eval_seed: int, eval_episodes: int) -> None:
    """Checks that no episode is both collected and evaluated.

    Evaluation uses the seeds `eval_seed` … `eval_seed` + `eval_episodes` - 1 for every task.

    Raises:
        ConfigError: one of these seeds was collected for some task; the message names both.
    """
    collected = collection_seeds(tasks, episodes, seed)
    if common := [s for s in range(eval_seed, eval_seed + eval_episodes) if s in collected]:
        raise ConfigError(
            f"seed {common[0]} would be evaluated, but was collected for {collected[common[0]]}; choose another eval_seed"
        )


def describe_data(data: TaskDatasets) -> dict[str, Any]:
    """What a cell's facts say of its data: the `fingerprint`, and a dict for each of the `tasks`.

    For each task: number of `episodes` and `steps`, the `mean_score`, and a `histogram` of normalized episode scores with ten
    bins from 0 to 100. Scores outside that range are counted in the outermost bins.
    """
    described = {}
    for task, packed in zip(data.tasks, data.packed, strict=True):
        outcomes = [None] * len(packed.returns) if packed.success is None else packed.success.tolist()
        scores = [task.normalized_score(float(r), s) for r, s in zip(packed.returns, outcomes, strict=True)]
        counts, _ = np.histogram(np.clip(scores, 0.0, 100.0), HISTOGRAM_BINS, (0.0, 100.0))
        described[task.name] = {
            "episodes": len(scores),
            "steps": int(packed.lengths.sum()),
            "mean_score": float(np.mean(scores)),
            "histogram": counts.tolist(),
        }
    return {"fingerprint": data_fingerprint(data), "tasks": described}
