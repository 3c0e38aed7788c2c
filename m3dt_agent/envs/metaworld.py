"""Meta-World's 50 tasks (metaworld 3.x, the `-v3` tasks, reward function v2), goal visible, a new random goal each episode.

Observation (39): hand position and gripper opening (4), objects (14), the same 18 numbers one step earlier, goal (3).

Three things upstream leaves to the caller are owned here:
- `reset(seed=)` is ignored upstream: the generator behind goals is seeded through `env.seed`, and goals are drawn uniformly
  from the task's own reset space (`_freeze_rand_vec=False`, `seeded_rand_vec=True`);
- the goal is part of the observation (`_partially_observable=False`);
- the cached observation space still has zero goal bounds, and every step clips observations to it: it is recomputed
  (seven tasks fix a coordinate of their goal; low and high are equal there).
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
"""The reward function of every Meta-World episode; recorded with evaluation results."""


class MetaWorldEnv(TaskEnv):
    """A Meta-World task with its goal visible. `info["success"]` is latched over the episode."""

    _camera = "corner2"

    def __init__(self, task: TaskSpec, render_mode: str | None = None) -> None:
        self._sim = _simulation(task)
        super().__init__(task, render_mode, _float32_box(self._sim.observation_space), self._sim.dt)

    def _start(self, seed: int) -> Observation:
        self._sim.seed(seed)
        # Upstream runs reset_model once before it clears the simulation; clear it first, so that nothing of the last episode
        # is left.
        mujoco.mj_resetData(self._sim.model, self._sim.data)
        observation, _ = self._sim.reset()
        return self._clipped(observation)

    def _advance(self, action: NDArray[np.float64]) -> Transition:
        observation, reward, _, _, info = self._sim.step(action)
        return Transition(observation.astype(np.float32), float(reward), success=bool(info["success"]))

    def _scene(self) -> tuple[Any, Any]:
        return self._sim.model, self._sim.data

    def _clipped(self, observation: NDArray[np.float64]) -> Observation:
        # Upstream clips the observations of steps, not of resets.
        box = self.observation_space
        assert isinstance(box, Box)
        return np.clip(observation.astype(np.float32), box.low, box.high)

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame, as `TaskEnv.render`."""
        frame = super().render()
        # The corner cameras of Meta-World's models are mounted upside down.
        return None if frame is None else np.ascontiguousarray(frame[::-1, ::-1])

    def close(self) -> None:
        """Frees the renderers."""
        super().close()
        self._sim.close()


def make(task: str, render_mode: str | None = None) -> MetaWorldEnv:
    """The Meta-World task called `task` (`gymnasium.make` adds the time limit).

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
