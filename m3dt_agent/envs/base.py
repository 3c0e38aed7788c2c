"""What the four domains share: one seeded, clipped, float32 environment per task.

A domain implements three things and inherits the rest:

    _start(seed)    begin an episode that `seed` (32 bits) alone decides      -> observation
    _advance(a)     one agent step with an action already clipped to [-1, 1]  -> Transition
    _scene()        the MuJoCo model and data a frame is drawn from

Seeds: `reset(seed=s)` starts the episode of s, folded to 32 bits because dm_control's generator takes no more. `reset()` draws
the next 32-bit seed from the environment's own generator, so that a sequence of resets is decided by the first seed as well.
"""

from __future__ import annotations

import warnings
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

Observation: TypeAlias = NDArray[np.float32]
Action: TypeAlias = NDArray[np.float32]

FRAME_SIZE = 480
"""Height and width of a rendered frame, in pixels; within every model's offscreen buffer (MuJoCo's default is 640 x 480)."""


@contextmanager
def simulator(name: str) -> Iterator[None]:
    """Turns a failed import inside the block into a MissingDependencyError that names the extra to install."""
    try:
        with warnings.catch_warnings():
            # dm_control tries glfw first when it is imported, which complains where there is no display.
            warnings.filterwarnings("ignore", module="glfw")
            yield
    except ImportError as error:
        raise MissingDependencyError(
            f"the simulator {name!r} cannot be imported ({error}); install it with: pip install 'm3dt-agent[envs]'"
        ) from error


def fold_seed(seed: int) -> int:
    """`seed` itself below 2**32, else a 32-bit number that mixes all of it.

    Raises:
        InvalidValueError: `seed` is negative.
    """
    if seed < 0:
        raise InvalidValueError(f"a seed must be >= 0; got {seed}")
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


class Transition(NamedTuple):
    """What one agent step returns."""

    observation: Observation  # (obs_dim,) float32
    reward: float
    terminated: bool = False  # the task itself ended
    success: bool = False  # the task is achieved in this step


class TaskEnv(gym.Env[Observation, Action]):
    """One of the 160 tasks. Observations (obs_dim,) float32, actions (act_dim,) float32 in [-1, 1].

    Actions outside [-1, 1] are clipped before they reach the simulator. Tasks that can succeed carry `info["success"]` after
    `reset` and after every `step`, a bool that stays True for the rest of the episode. An episode is truncated after
    `task.max_episode_steps`.
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

    @abstractmethod
    def _start(self, seed: int) -> Observation:
        """Begins the episode that `seed` decides and returns its first observation."""

    @abstractmethod
    def _advance(self, action: NDArray[np.float64]) -> Transition:
        """One agent step with an action (act_dim,) already clipped to [-1, 1]."""

    @abstractmethod
    def _scene(self) -> tuple[Any, Any]:
        """The `mujoco.MjModel` and `mujoco.MjData` to draw."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; `options` has no meaning here.

        Raises:
            InvalidValueError: `seed` is negative.
        """
        folded = None if seed is None else fold_seed(seed)
        super().reset(seed=seed)
        observation = self._start(int(self.np_random.integers(2**32)) if folded is None else folded)
        self._steps_left = self.task.max_episode_steps
        self._success = False if self.task.domain == "metaworld" else None
        return observation, self._info()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One agent step.

        Raises:
            ShapeError: `action` is not (act_dim,).
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
        """The current frame, (480, 480, 3) uint8 RGB, or None without `render_mode="rgb_array"`.

        Raises:
            M3DTError: no OpenGL context can be opened; the message says how to choose one.
        """
        if self.render_mode is None:
            return None
        model, data = self._scene()
        if self._renderer is None:
            self._renderer = self._open_renderer(model)
        self._renderer.update_scene(data, camera=self._camera)
        frame: NDArray[np.uint8] = self._renderer.render()
        return frame

    def close(self) -> None:
        """Frees the renderer, if one was opened."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open_renderer(self, model: Any) -> Any:
        import mujoco

        try:
            return mujoco.Renderer(model, FRAME_SIZE, FRAME_SIZE)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise M3DTError(
                f"{self.task.env_id}: cannot open an OpenGL context ({error}); set MUJOCO_GL to glfw, egl or osmesa before "
                "Python starts (without a GPU or display: install libosmesa6 and use MUJOCO_GL=osmesa)"
            ) from error

    def _checked(self, action: Action) -> NDArray[np.float64]:
        # float64: simulators compute in it, and a caller's float64 action should not be rounded on the way.
        array = np.asarray(action, np.float64)
        if array.shape != (self.task.act_dim,):
            raise ShapeError(f"{self.task.env_id}: an action has shape ({self.task.act_dim},); got {array.shape}")
        if not np.isfinite(array).all():
            raise InvalidValueError(f"{self.task.env_id}: an action must be finite; got {array.tolist()}")
        return np.clip(array, -1.0, 1.0)

    def _info(self) -> dict[str, Any]:
        return {} if self._success is None else {"success": self._success}
