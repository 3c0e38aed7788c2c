"""`m3dt tasks`: lists the tasks and the published sets."""

from __future__ import annotations

import dataclasses

from ..tasks import known
from .shared.options import AsJson, SetSeed, TaskNames, TaskSet, named_tasks
from .shared.output import emit, make_table


def tasks_command(
    names: TaskNames = None,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    as_json: AsJson = False,
) -> None:
    """List tasks: the 160 and your own, or those of a set or a domain, or those named."""
    listed = named_tasks(names, task_set, set_seed) or known()
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
