"""`m3dt tasks`: the tasks and the published sets."""

from __future__ import annotations

import dataclasses

from ..tasks import TASKS, resolve, task_set
from .options import AsJson, SetSeed, TaskNames, TaskSet
from .output import emit, make_table


def tasks_command(
    names: TaskNames = None,
    set_name: TaskSet = None,
    set_seed: SetSeed = 0,
    as_json: AsJson = False,
) -> None:
    """List tasks: all 160, or those of a set, a domain or by name."""
    chosen = (*resolve(names or (), seed=set_seed), *(task_set(set_name, set_seed) if set_name else ()))
    listed = chosen or TASKS
    columns = ("task", "domain", "observations", "actions", "steps", "target return", "custom")
    cells = (
        [t.name, t.domain, t.obs_dim, t.act_dim, t.max_episode_steps, t.target_return, "yes" if t.custom else ""]
        for t in listed
    )
    emit(
        [{**dataclasses.asdict(task), "env_id": task.env_id} for task in listed],
        as_json=as_json,
        table=make_table(f"{len(listed)} tasks", columns, cells, left=2),
    )
