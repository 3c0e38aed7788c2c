"""The 30 DMControl tasks, 19 of the suite and 11 custom ones (custom_tasks.py), through Shimmy's compatibility environment.

Each agent step repeats its action for two control steps and adds up their rewards; an episode has 500 agent steps. Observations
are flattened in dm_env's own order: Gymnasium's FlattenObservation would sort the keys and so permute the entries of walker,
hopper, finger and fish. Actions in [-1, 1] are scaled to the task's own bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ..errors import ConfigError
from ..tasks import TaskSpec, get
from .base import Observation, TaskEnv, Transition, simulator

with simulator("dm_control"):
    import mujoco
    from dm_control import suite
    from mujoco import rollout
    from shimmy.dm_control_compatibility import DmControlCompatibilityV0

    from .custom_tasks import CUSTOM_TASKS

_FULL_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
ACTION_REPEAT = 2
"""Control steps per agent step (the published setting, which is TD-MPC2's)."""

_SUITE_TASKS = {  # our name → the suite's domain and task, for names that cannot simply be split at the first dash
    "cup-catch": ("ball_in_cup", "catch"),
    "cartpole-balance-sparse": ("cartpole", "balance_sparse"),
    "cartpole-swingup-sparse": ("cartpole", "swingup_sparse"),
    "finger-turn-easy": ("finger", "turn_easy"),
    "finger-turn-hard": ("finger", "turn_hard"),
}


class DMControlEnv(TaskEnv):
    """A dm_control task. `physics` gives access to its simulation."""

    _camera = 0

    def __init__(self, task: TaskSpec, render_mode: str | None = None) -> None:
        self._sim: Any = DmControlCompatibilityV0(_simulation(task))
        bounds = self._sim.action_space
        self._action_low = bounds.low
        self._action_half_range = (bounds.high - bounds.low) / 2
        space = Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        super().__init__(task, render_mode, space, ACTION_REPEAT * self._sim.dt)

    @property
    def physics(self) -> Any:
        """The `dm_control.mujoco.Physics` of this task."""
        return self._sim._env.physics

    def look_ahead(self, actions: NDArray[np.float64], tip: str, target: str) -> NDArray[np.float64]:
        """Simulates S action sequences from the current state, without changing the episode.

        Args:
            actions: (S, T, act_dim) in [-1, 1].
            tip, target: names of sites or geoms.

        Returns:
            distances (S, T) between `tip` and `target` after each agent step, in meters.

        Raises:
            ConfigError: the simulation has no site or geom of that name.
        """
        model = self.physics.model.ptr
        begin = np.empty(mujoco.mj_stateSize(model, _FULL_STATE))
        mujoco.mj_getState(model, self.physics.data.ptr, begin, _FULL_STATE)
        substeps = ACTION_REPEAT * self._sim._env._n_sub_steps
        control = self._action_low + (actions + 1.0) * self._action_half_range
        data = mujoco.MjData(model)
        states, _ = rollout.rollout(model, [data], begin[None], np.repeat(control, substeps, axis=1), skip_checks=False)
        reached = states[:, substeps - 1 :: substeps]  # (S, T, n)
        places = [_position_of(model, data, name) for name in (tip, target)]
        distances = np.empty(reached.shape[:2])
        for index in np.ndindex(distances.shape):
            mujoco.mj_setState(model, data, reached[index], _FULL_STATE)
            mujoco.mj_kinematics(model, data)
            distances[index] = np.linalg.norm(places[0] - places[1])
        return distances

    def _start(self, seed: int) -> Observation:
        observation, _ = self._sim.reset(seed=seed)
        return _flatten(observation)

    def _advance(self, action: NDArray[np.float64]) -> Transition:
        control = self._action_low + (action + 1.0) * self._action_half_range
        total = 0.0
        for _ in range(ACTION_REPEAT):
            observation, reward, terminated, truncated, _ = self._sim.step(control)
            total += float(reward)
            if terminated or truncated:  # after that, dm_control would silently begin a new episode
                break
        return Transition(_flatten(observation), total, terminated)

    def _scene(self) -> tuple[Any, Any]:
        return self.physics.model.ptr, self.physics.data.ptr

    def close(self) -> None:
        """Frees the simulation and the renderer."""
        super().close()
        self._sim.close()


def make(task: str, render_mode: str | None = None) -> DMControlEnv:
    """Makes the environment of the DMControl task `task`; `gymnasium.make` calls it and adds the time limit.

    Raises:
        UnknownTaskError: there is no such task.
    """
    return DMControlEnv(get(task), render_mode)


def _position_of(model: Any, data: Any, name: str) -> NDArray[np.float64]:
    """The position (3,) of the site or geom `name`: a view that follows `data`."""
    for kind, positions in ((mujoco.mjtObj.mjOBJ_SITE, data.site_xpos), (mujoco.mjtObj.mjOBJ_GEOM, data.geom_xpos)):
        if (number := mujoco.mj_name2id(model, kind, name)) >= 0:
            return np.asarray(positions[number])
    raise ConfigError(f"the simulation has no site or geom called {name!r}")


def _simulation(task: TaskSpec) -> Any:
    if task.custom:
        return CUSTOM_TASKS[task.name]()
    domain, _, name = task.name.partition("-")
    domain, name = _SUITE_TASKS.get(task.name, (domain, name))
    return suite.load(domain, name)


def _flatten(observation: dict[str, NDArray[np.float64]]) -> Observation:
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32, casting="same_kind")
