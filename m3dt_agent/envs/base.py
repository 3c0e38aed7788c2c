"""The base class of all environments: seeding, clipping of actions, episode length and rendering of one task.

A domain implements three methods and inherits the rest:

    _start(seed)    begins the episode that a 32-bit seed determines           -> observation
    _advance(a)     one agent step with an action already clipped to [-1, 1]   -> Transition
    _scene()        the MuJoCo model and data from which a frame is drawn

`reset(seed=s)` starts the episode of seed s. Larger seeds are folded to 32 bits, because dm_control's generator takes no more.
`reset()` draws the next 32-bit seed from the environment's own generator, so the first seed determines all later resets too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from ..errors import ConfigError, InvalidValueError, M3DTError, MissingDependencyError, ShapeError
from ..tasks import TaskSpec
from .rendering import open_renderer, without_broken_opengl

Observation: TypeAlias = NDArray[np.float32]
Action: TypeAlias = NDArray[np.float32]

FRAME_SIZE = 480
"""Height and width of a rendered frame, in pixels. It fits every model's offscreen buffer (MuJoCo's default is 640 x 480)."""


@contextmanager
def simulator(name: str) -> Iterator[None]:
    """Turns an ImportError in the block into a MissingDependencyError that names the extra to install."""
    try:
        with without_broken_opengl(name):
            yield
    except ImportError as error:
        raise MissingDependencyError(
            f"the simulator {name!r} cannot be imported ({error}); install it with: pip install 'm3dt-agent[envs]'"
        ) from error


def fold_seed(seed: int) -> int:
    """Returns `seed` if it is below 2**32, else a 32-bit number that depends on all of its bits.

    Raises:
        InvalidValueError: `seed` is negative.
    """
    if seed < 0:
        raise InvalidValueError(f"a seed must be >= 0; got {seed}")
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


class Transition(NamedTuple):
    """The result of one agent step of a domain."""

    observation: Observation  # (obs_dim,) float32
    reward: float
    terminated: bool = False  # the task ended the episode
    success: bool = False  # the task is solved in this step


class TaskEnv(gym.Env[Observation, Action]):
    """One of the 160 tasks. Observations (obs_dim,) float32, actions (act_dim,) float32 in [-1, 1].

    Actions outside [-1, 1] are clipped before they reach the simulator. For tasks that have success, `reset` and `step` give
    `info["success"]`, a bool that stays True for the rest of the episode once the task is solved. An episode is truncated after
    `task.max_episode_steps` agent steps.

    Args:
        task: the task.
        render_mode: "rgb_array" if `render` is to draw frames; None: it returns None.
        observation_space: (obs_dim,) float32.
        dt: seconds of simulated time per agent step; decides the frames per second of `metadata`.

    Raises:
        ConfigError: another `render_mode`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # Gymnasium's own declaration
    _camera: str | int = -1

    def __init__(self, task: TaskSpec, render_mode: str | None, observation_space: Space[Observation], dt: float) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode must be None or one of {self.metadata['render_modes']}; got {render_mode!r}")
        self.task = task
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": 1.0 / dt}
        self.observation_space = observation_space
        self.action_space: Space[Action] = Box(-1.0, 1.0, (task.act_dim,), np.float32)
        self._steps_left = 0
        self._success: bool | None = None
        self._renderer: Any = None
        self.frame_size, self.shadows = FRAME_SIZE, True
        """How `render` draws; may be set before the first frame. Without a GPU, small ones without shadows take a tenth."""

    @abstractmethod
    def _start(self, seed: int) -> Observation:
        """Begins the episode that `seed` determines and returns its first observation."""

    @abstractmethod
    def _advance(self, action: NDArray[np.float64]) -> Transition:
        """Takes one agent step with an action (act_dim,) that is already clipped to [-1, 1]."""

    @abstractmethod
    def _scene(self) -> tuple[Any, Any]:
        """Returns the `mujoco.MjModel` and `mujoco.MjData` to draw."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode and returns its first observation and info; `options` is ignored.

        Raises:
            InvalidValueError: `seed` is negative.
        """
        folded = None if seed is None else fold_seed(seed)
        super().reset(seed=seed)
        observation = self._start(int(self.np_random.integers(2**32)) if folded is None else folded)
        self._steps_left = self.task.max_episode_steps
        self._success = False if self.task.has_success else None
        return observation, self._info()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one agent step; returns observation, reward, terminated, truncated and info.

        Raises:
            ShapeError: the shape of `action` is not (act_dim,).
            InvalidValueError: `action` holds a NaN or an infinity.
            M3DTError: the episode is over, or none was started.
        """
        if self._steps_left == 0:
            raise M3DTError(f"{self.task.env_id}: the episode is over or was never started; call reset() before step()")
        transition = self._advance(self._checked(action))
        self._steps_left = 0 if transition.terminated else self._steps_left - 1
        if transition.success:
            self._success = True
        truncated = self._steps_left == 0 and not transition.terminated
        return transition.observation, transition.reward, transition.terminated, truncated, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """Draws the current frame, uint8 RGB, (480, 480, 3) or of `frame_size`; returns None without `render_mode="rgb_array"`.

        Raises:
            M3DTError: no OpenGL context can be opened; the message says what to do.
        """
        if self.render_mode is None:
            return None
        model, data = self._scene()
        if self._renderer is None:
            self._renderer = open_renderer(model, self.frame_size, self.task.env_id, shadows=self.shadows)
        self._renderer.update_scene(data, camera=self._camera)
        frame: NDArray[np.uint8] = self._renderer.render()
        return frame

    def close(self) -> None:
        """Frees the renderer, if one was opened."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _checked(self, action: Action) -> NDArray[np.float64]:
        # Simulators compute in float64, so an action in float64 is not rounded.
        array = np.asarray(action, np.float64)
        if array.shape != (self.task.act_dim,):
            raise ShapeError(f"{self.task.env_id}: an action has shape ({self.task.act_dim},); got {array.shape}")
        if not np.isfinite(array).all():
            raise InvalidValueError(f"{self.task.env_id}: an action must be finite; got {array.tolist()}")
        return np.clip(array, -1.0, 1.0)

    def _info(self) -> dict[str, Any]:
        return {} if self._success is None else {"success": self._success}
