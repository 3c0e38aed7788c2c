"""The 160 tasks as Gymnasium environments, `M3DT/<task>-v0`, and many of them stepped side by side.

    base.py          what the four domains share: seeding, clipping, episode length, frames
    metaworld.py     50 Meta-World tasks (metaworld 3.x, `-v3` tasks, reward function v2)
    dm_control.py    30 DMControl tasks through Shimmy; the 11 that are not in the suite are custom_tasks.py
    locomotion.py    40 ant-dir and 40 cheetah-vel tasks on Gymnasium's MuJoCo models
    wrappers.py      end at success, seed the k-th reset
    vector.py        different tasks in one padded vector environment; its slots live in slots.py, its processes in worker.py

Importing this package imports no simulator: ids are registered with string entry points, which also keeps `EnvSpec.to_json`
working.
"""

from __future__ import annotations

import gymnasium as gym

from ..tasks import TASKS, Domain

_ENTRY_POINTS: dict[Domain, str] = {
    "metaworld": "m3dt_agent.envs.metaworld:make",
    "dmcontrol": "m3dt_agent.envs.dm_control:make",
    "ant-dir": "m3dt_agent.envs.locomotion:make",
    "cheetah-vel": "m3dt_agent.envs.locomotion:make",
}


def register() -> None:
    """Registers `M3DT/<task>-v0` for all 160 tasks with Gymnasium. Calling it again changes nothing."""
    for task in TASKS:
        if task.env_id not in gym.registry:
            gym.register(
                task.env_id,
                entry_point=_ENTRY_POINTS[task.domain],
                max_episode_steps=task.max_episode_steps,
                kwargs={"task": task.name},
            )
