"""The 160 tasks as data: 50 Meta-World, 30 DMControl (11 custom), 40 ant-dir, 40 cheetah-vel.

The table is `assets/tasks160.json`, in the published order (M3DT, arXiv 2505.24378, appendix A). The sets mt10 … mt160 for
seeds 0, 1 and 2 are `assets/task_sets.json`. No simulator is imported.

    >>> from m3dt_agent import tasks
    >>> tasks.get("walker-run").obs_dim
    24
    >>> len(tasks.task_set("mt10", seed=0))
    10
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from .names import lookup
from .spec import Linear, ScoreRule, TaskSpec

Domain = Literal["metaworld", "dmcontrol", "ant-dir", "cheetah-vel"]
DOMAINS: tuple[Domain, ...] = ("metaworld", "dmcontrol", "ant-dir", "cheetah-vel")

MAX_OBS_DIM = 39
"""The widest observation of the 160 tasks (Meta-World); states are padded with zeros to at least this width."""
MAX_ACT_DIM = 8
"""The widest action of the 160 tasks (ant-dir); actions are padded with zeros to at least this width."""

_SCORES: Mapping[str, ScoreRule] = {
    "metaworld": "success",
    "dmcontrol": Linear(0.0, 1000.0, clip=False),
    "ant-dir": Linear(0.0, 500.0),
    "cheetah-vel": Linear(-100.0, -30.0),
}
"""Domain → how its tasks are scored (M3DT, section 5 and appendix A)."""


def _read_asset(name: str) -> object:
    return json.loads(resources.files("m3dt_agent").joinpath("assets", name).read_text())


def _load_table() -> tuple[TaskSpec, ...]:
    rows = _read_asset("tasks160.json")
    assert isinstance(rows, list)
    return tuple(
        TaskSpec(
            name=row["task"],
            score=_SCORES[row["domain"]],
            published_score=row["published_single_task_score"],
            **{key: value for key, value in row.items() if key not in ("task", "published_single_task_score")},
        )
        for row in rows
    )


TASKS: tuple[TaskSpec, ...] = _load_table()
"""All 160 tasks in the published order."""

BUILTIN: Mapping[str, TaskSpec] = {task.name: task for task in TASKS}
"""The 160 tasks by name."""


@functools.cache
def task_sets() -> dict[str, dict[str, list[str]]]:
    """Seed, as "seed0" → set → names of its tasks."""
    sets = _read_asset("task_sets.json")
    assert isinstance(sets, dict)
    return sets


def task_set(name: str, seed: int = 0) -> tuple[TaskSpec, ...]:
    """A published task set: mt10, mt20, mt40, mt80, mt120 or mt160, as drawn for seed 0, 1 or 2.

    Raises:
        UnknownTaskError: no such set or seed.
    """
    by_seed = lookup(task_sets(), f"seed{seed}", "task-set seed")
    return tuple(BUILTIN[task] for task in lookup(by_seed, name, "task set"))
