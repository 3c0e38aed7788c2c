"""ant-dir and cheetah-vel: run in a given direction, or at a given velocity, on Gymnasium's MuJoCo models.

    cheetah-vel   observation = qpos[1:] (8), qvel (9), torso position (3)
                  reward = -|v - v*| - 0.05 Σa²,                         v = Δqpos[0] / dt
    ant-dir       observation = qpos[2:] (13), qvel (14)
                  reward = v·(cos g, sin g) - 0.5 Σa² - 0.5e-3 Σ clip(f, -1, 1)² + 1,    v = Δ(torso x, y) / dt
                  f: external contact forces (cfrc_ext); terminated unless the state is finite and 0.2 <= z <= 1.0

Here v* is the goal velocity, g the goal direction and a the action. Episodes have 200 agent steps of dt = 0.05 s (5 physics
steps). They start at qpos = initial + U(-0.1, 0.1), qvel = 0.1 N(0, 1). Torso positions are MuJoCo's `xpos`. It is computed at
the beginning of a physics step, so it lags one physics step behind qpos, as in the published tasks
(docs/architecture.md#tasks-and-environments).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ..tasks import TaskSpec, get
from .base import Observation, TaskEnv, Transition, simulator

with simulator("mujoco"):
    import mujoco

_ASSETS = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"
_FRAME_SKIP = 5
_RESET_NOISE = 0.1
_CHEETAH_CONTROL_COST = 0.05
_ANT_CONTROL_COST = 0.5
_ANT_CONTACT_COST = 0.5e-3
_ANT_SURVIVE_REWARD = 1.0
_ANT_HEALTHY_Z = (0.2, 1.0)  # meters


class LocomotionEnv(TaskEnv):
    """A MuJoCo model that takes `_FRAME_SKIP` physics steps per agent step."""

    _camera = "track"

    def __init__(self, task: TaskSpec, model_file: str, render_mode: str | None = None) -> None:
        self.model: Any = mujoco.MjModel.from_xml_path(str(_ASSETS / model_file))
        self.data: Any = mujoco.MjData(self.model)
        self.dt = self.model.opt.timestep * _FRAME_SKIP
        self._torso = self.model.body("torso").id
        super().__init__(task, render_mode, Box(-np.inf, np.inf, (task.obs_dim,), np.float32), self.dt)

    def _observe(self) -> Observation:
        raise NotImplementedError

    def _start(self, seed: int) -> Observation:
        generator = np.random.default_rng(seed)
        # Otherwise the solver's warm start of the last episode would change this one.
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos += generator.uniform(-_RESET_NOISE, _RESET_NOISE, self.model.nq)
        self.data.qvel[:] = _RESET_NOISE * generator.standard_normal(self.model.nv)
        mujoco.mj_forward(self.model, self.data)
        return self._observe()

    def _simulate(self, action: NDArray[np.float64]) -> None:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, nstep=_FRAME_SKIP)

    def _scene(self) -> tuple[Any, Any]:
        return self.model, self.data


class CheetahVelEnv(LocomotionEnv):
    """Rewards running at `task.goal_velocity` (m/s)."""

    def __init__(self, task: TaskSpec, render_mode: str | None = None) -> None:
        assert task.goal_velocity is not None
        self._goal_velocity = task.goal_velocity
        super().__init__(task, "half_cheetah.xml", render_mode)

    def _observe(self) -> Observation:
        data = self.data
        return np.concatenate((data.qpos[1:], data.qvel, data.xpos[self._torso]), dtype=np.float32, casting="same_kind")

    def _advance(self, action: NDArray[np.float64]) -> Transition:
        before = float(self.data.qpos[0])
        self._simulate(action)
        velocity = (float(self.data.qpos[0]) - before) / self.dt
        return Transition(
            self._observe(), -abs(velocity - self._goal_velocity) - _CHEETAH_CONTROL_COST * _sum_of_squares(action)
        )


class AntDirEnv(LocomotionEnv):
    """Rewards running in the direction `task.goal_direction` (radians from the x axis); falling or jumping ends the episode."""

    def __init__(self, task: TaskSpec, render_mode: str | None = None) -> None:
        assert task.goal_direction is not None
        self._direction = np.array([math.cos(task.goal_direction), math.sin(task.goal_direction)])
        super().__init__(task, "ant.xml", render_mode)

    def _observe(self) -> Observation:
        return np.concatenate((self.data.qpos[2:], self.data.qvel), dtype=np.float32, casting="same_kind")

    def _advance(self, action: NDArray[np.float64]) -> Transition:
        before = self.data.xpos[self._torso, :2].copy()
        self._simulate(action)
        mujoco.mj_rnePostConstraint(self.model, self.data)  # fills cfrc_ext, which mj_step does not
        progress = float((self.data.xpos[self._torso, :2] - before) @ self._direction) / self.dt
        contact = _ANT_CONTACT_COST * _sum_of_squares(np.clip(self.data.cfrc_ext, -1.0, 1.0))
        reward = progress - _ANT_CONTROL_COST * _sum_of_squares(action) - contact + _ANT_SURVIVE_REWARD
        return Transition(self._observe(), reward, terminated=not self._healthy())

    def _healthy(self) -> bool:
        low, high = _ANT_HEALTHY_Z
        finite = np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all()
        return bool(finite) and low <= float(self.data.qpos[2]) <= high


def _sum_of_squares(values: NDArray[Any]) -> float:
    flat = values.ravel()
    return float(flat @ flat)


def make(task: str, render_mode: str | None = None) -> LocomotionEnv:
    """Makes the environment of the ant-dir or cheetah-vel task `task`; `gymnasium.make` calls it and adds the time limit.

    Raises:
        UnknownTaskError: there is no such task.
    """
    spec = get(task)
    return AntDirEnv(spec, render_mode) if spec.domain == "ant-dir" else CheetahVelEnv(spec, render_mode)
