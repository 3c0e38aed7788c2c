"""Environments and tasks that are not among the 160, for the tests; workers import this module too."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from m3dt_agent.tasks import Linear, TaskSpec, get


class Reacher1D(gym.Env[Any, Any]):
    """A point on a line that an action in [0, 10] moves; goal-conditioned, with dictionaries and a success that flickers."""

    observation_space = Dict({"observation": Box(-9.0, 9.0, (2,), np.float64), "goal": Dict({"at": Box(-1.0, 1.0, (1, 1))})})
    action_space = Box(0.0, 10.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at, self._goal = float(self.np_random.uniform(-1, 1)), float(self.np_random.uniform(-1, 1))
        return self._seen(), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float32
        assert self.action_space.contains(action)
        self._at = float(np.clip(self._at + (action[0] - 5.0) / 25.0, -9.0, 9.0))
        off = abs(self._at - self._goal)
        return self._seen(), -off, False, False, {"is_success": np.bool_(off < 0.1)}

    def _seen(self) -> dict[str, Any]:
        return {"observation": np.array([self._at, 1.0]), "goal": {"at": np.full((1, 1), self._goal, np.float32)}}


class Wide(gym.Env[Any, Any]):
    """46 observations and 28 actions: wider than any of the 160 tasks. The reward is the mean action."""

    observation_space = Box(-np.inf, np.inf, (46,), np.float32)
    action_space = Box(-1.0, 1.0, (4, 7), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=46).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (4, 7)
        return self.np_random.normal(size=46).astype(np.float32), float(action.mean()), False, False, {"success": True}


class Mirror(Wide):
    """As wide, and to be copied: the closer an action is to the first 28 observations, the higher its reward, 1 at most."""

    observation_space = Box(-1.0, 1.0, (46,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - float(np.abs(action.reshape(-1) - self._now[:28]).mean())
        return self._seen(), reward, False, False, {}

    def _seen(self) -> Any:
        self._now = self.np_random.uniform(-1.0, 1.0, 46)
        return self._now


class Door(Mirror):
    """Spaces and infos of AdroitHandDoor-v1, of which D4RL/door/human-v2 is: 39 and 28 numbers, float64 and 32."""

    observation_space = Box(-np.inf, np.inf, (39,), np.float64)
    action_space = Box(-1.0, 1.0, (28,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed)[0], {"success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, *ends, _ = super().step(action)
        return seen, reward, *ends, {"success": reward > 0.9}  # type: ignore[return-value]

    def _seen(self) -> Any:
        return super()._seen()[:39]


class AntMaze(gym.Env[Any, Any]):
    """Spaces and infos of AntMaze_UMaze-v4, of which D4RL/antmaze/umaze-v1 is; a point that the first two actions move."""

    observation_space = Dict(
        {
            "achieved_goal": Box(-np.inf, np.inf, (2,), np.float64),
            "desired_goal": Box(-np.inf, np.inf, (2,), np.float64),
            "observation": Box(-np.inf, np.inf, (27,), np.float64),
        }
    )
    action_space = Box(-1.0, 1.0, (8,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at, self._goal = self.np_random.uniform(-4.0, 4.0, (2, 2))
        return self._seen(), {"success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at = self._at + 0.5 * action[:2]
        there = bool(np.linalg.norm(self._at - self._goal) < 0.45)
        return self._seen(), float(there), False, False, {"success": there}

    def _seen(self) -> Any:
        body = np.concatenate([self._at, np.zeros(25)])
        return {"achieved_goal": self._at.copy(), "desired_goal": self._goal.copy(), "observation": body}


class Choices(Wide):
    """Actions that are no numbers."""

    action_space = Discrete(3)  # type: ignore[assignment]


class Pictures(Wide):
    """Observations that are images."""

    observation_space = Box(0, 255, (64, 64, 3), np.uint8)


def cheetah(velocity: float, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """cheetah-vel at any velocity, in m/s."""
    from m3dt_agent.envs.locomotion import CheetahVelEnv

    return CheetahVelEnv(dataclasses.replace(get("cheetah-vel-20"), goal_velocity=velocity), render_mode)


if "m3dt-tests/Cheetah-v0" not in gym.registry:
    gym.register("m3dt-tests/Cheetah-v0", entry_point="own_tasks:cheetah")
for _name in ("Reacher1D", "Wide", "Mirror", "Door", "AntMaze", "Choices", "Pictures"):
    if f"m3dt-tests/{_name}-v0" not in gym.registry:
        gym.register(f"m3dt-tests/{_name}-v0", entry_point=f"own_tasks:{_name}")

SWING = TaskSpec(
    "own-swing",
    "classic",
    obs_dim=3,
    act_dim=1,
    max_episode_steps=200,
    return_scale=200.0,
    score=Linear(-1500.0, 0.0),
    env="Pendulum-v1",
    action_low=(-2.0,),
    action_high=(2.0,),
)
POINT = TaskSpec(
    "own-point",
    "lines",
    obs_dim=3,
    act_dim=1,
    max_episode_steps=20,
    return_scale=10.0,
    score="success",
    env="m3dt-tests/Reacher1D-v0",
    action_low=(0.0,),
    action_high=(10.0,),
    observation=("goal/at", "observation"),
)
WIDE = TaskSpec(
    "own-wide",
    "lines",
    obs_dim=46,
    act_dim=28,
    max_episode_steps=10,
    return_scale=1.0,
    score="return",
    env="m3dt-tests/Wide-v0",
)
CHEETAH = TaskSpec(
    "own-cheetah",
    "goals",
    obs_dim=20,
    act_dim=6,
    max_episode_steps=200,
    return_scale=200.0,
    score=Linear(-100.0, -30.0),
    env="m3dt-tests/Cheetah-v0",
    env_kwargs={"velocity": 1.61},
)
"""Between the goals of two of the 40 tasks, 1.575 and 1.65 m/s."""
