"""The 160 tasks as Gymnasium environments named `M3DT/<task>-v0`, and a vector environment that steps different tasks together.

    base.py          what all four domains share: seeding, clipping, episode length, frames
    metaworld.py     50 Meta-World tasks (metaworld 3.x, `-v3` tasks, reward function v2)
    dm_control.py    30 DMControl tasks through Shimmy; custom_tasks.py has the 11 of them that are not in dm_control's suite
    locomotion.py    40 ant-dir and 40 cheetah-vel tasks on Gymnasium's MuJoCo models
    wrappers.py      ends episodes at success; seeds resets
    vector.py        the vector environment; slots.py has its environments, worker.py its processes

Importing this package imports no simulator: ids are registered with entry points that are strings. This also keeps
`EnvSpec.to_json` working.
"""

from __future__ import annotations

import gymnasium as gym

from ..tasks import TASKS

_ENTRY_POINTS: dict[str, str] = {
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
