"""Wrappers for one environment: one ends episodes at success, one gives the k-th reset the k-th seed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from ..errors import ConfigError
from .base import Action, Observation


class StopOnSuccess(gym.Wrapper[Observation, Action, Observation, Action]):
    """Terminates an episode on its `after`-th step with `info["success"]` True.

    after=1 ends it on the step that first reports success, as Meta-World's evaluation does. `info["success"]` stays True, so
    after=N ends it N - 1 steps later. Episodes without `info["success"]` are not changed.

    Raises:
        ConfigError: `after` is not an integer >= 1.
    """

    def __init__(self, env: gym.Env[Observation, Action], after: int = 1) -> None:
        if not isinstance(after, int) or isinstance(after, bool) or after < 1:
            raise ConfigError(f"StopOnSuccess.after must be an integer >= 1; got {after!r}")
        super().__init__(env)
        self._after = after
        self._successful_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode."""
        self._successful_steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one agent step; `terminated` is True also if the wrapper ends the episode."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._successful_steps += bool(info.get("success", False))
        return observation, float(reward), terminated or self._successful_steps >= self._after, truncated, info


class SeededResets(gym.Wrapper[Observation, Action, Observation, Action]):
    """Gives the k-th reset without a seed the seed `first + k`, k = 0, 1, …

    Use it with evaluators that never seed (Meta-World's) or seed only the first reset (Stable-Baselines3's). Their k-th episode
    is then the one of seed `first + k` in our own evaluation. A reset with a seed starts the count again at that seed.
    """

    def __init__(self, env: gym.Env[Observation, Action], first: int = 0) -> None:
        super().__init__(env)
        self._next = first

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode of the next seed, or of `seed` if it is given."""
        if seed is None:
            seed = self._next
        self._next = seed + 1
        return self.env.reset(seed=seed, options=options)
