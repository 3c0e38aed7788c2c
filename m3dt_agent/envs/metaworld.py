"""Meta-World's 50 tasks (metaworld 3.x, the `-v3` tasks, reward function v2) with a visible goal, drawn anew for each episode.

Observation (39): hand position and gripper opening (4), objects (14), the same 18 numbers one step earlier, goal (3).

The metaworld package leaves three things to its caller, which are done here:
- It ignores `reset(seed=)`. The generator of goals is seeded with `env.seed`, and goals are drawn uniformly from the task's own
  reset space (`_freeze_rand_vec=False`, `seeded_rand_vec=True`).
- The goal is made part of the observation (`_partially_observable=False`).
- Its cached observation space still has zero bounds for the goal, and every step clips observations to it. The space is
  computed again. (Seven tasks fix a coordinate of their goal; low and high are equal there.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from ..tasks import TaskSpec, get
from .base import Observation, TaskEnv, Transition, simulator

with simulator("metaworld"):
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

REWARD_VERSION = "v2"
"""Meta-World's reward function in every episode; it is recorded with evaluation results."""


class MetaWorldEnv(TaskEnv):
    """A Meta-World task with a visible goal."""

    _camera = "corner2"

    def __init__(self, task: TaskSpec, render_mode: str | None = None) -> None:
        self._sim = _simulation(task)
        super().__init__(task, render_mode, _float32_box(self._sim.observation_space), self._sim.dt)

    def _start(self, seed: int) -> Observation:
        self._sim.seed(seed)
        # metaworld runs reset_model once before it clears the simulation. Clearing it first leaves nothing of the last episode.
        mujoco.mj_resetData(self._sim.model, self._sim.data)
        observation, _ = self._sim.reset()
        return self._clipped(observation)

    def _advance(self, action: NDArray[np.float64]) -> Transition:
        observation, reward, _, _, info = self._sim.step(action)
        return Transition(observation.astype(np.float32), float(reward), success=bool(info["success"]))

    def _scene(self) -> tuple[Any, Any]:
        return self._sim.model, self._sim.data

    def _clipped(self, observation: NDArray[np.float64]) -> Observation:
        # metaworld clips the observations of steps but not those of resets.
        box = self.observation_space
        assert isinstance(box, Box)
        return np.clip(observation.astype(np.float32), box.low, box.high)

    def render(self) -> NDArray[np.uint8] | None:
        """Draws the current frame; see `TaskEnv.render`."""
        frame = super().render()
        # The corner cameras of Meta-World's models are mounted upside down.
        return None if frame is None else np.ascontiguousarray(frame[::-1, ::-1])

    def close(self) -> None:
        """Frees the renderers."""
        super().close()
        self._sim.close()


def make(task: str, render_mode: str | None = None) -> MetaWorldEnv:
    """Makes the environment of the Meta-World task `task`; `gymnasium.make` calls it and adds the time limit.

    Raises:
        UnknownTaskError: there is no such task.
    """
    return MetaWorldEnv(get(task), render_mode)


def _simulation(task: TaskSpec) -> Any:
    sim = ALL_V3_ENVIRONMENTS[f"{task.name}-v3"](reward_function_version=REWARD_VERSION)
    sim._set_task_called = True
    sim._freeze_rand_vec = False
    sim.seeded_rand_vec = True
    sim._partially_observable = False
    sim.__dict__.pop("sawyer_observation_space", None)
    sim.observation_space = sim.sawyer_observation_space
    return sim


def _float32_box(space: Box) -> Space[Observation]:
    return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
