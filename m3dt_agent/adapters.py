"""The same agent in the loops of other libraries: Stable-Baselines3, Meta-World, any Gymnasium vector environment.

    library                                   its loop calls                              adapter
    stable_baselines3 evaluate_policy         predict(obs, state, episode_start, ...)     SB3Policy
    metaworld.evaluation.evaluation           eval_action(obs), reset(env_mask)           MetaWorldPolicy, metaworld_envs
    gymnasium.vector                          your own loop                               EpisodeStarts, run_episodes

Stable-Baselines3 and Meta-World do not pass rewards to the policy, so their adapters act with `rtg_mode="constant"`. They give
the returns of `evaluation.evaluate` on the same episodes:

- Stable-Baselines3 seeds only the first reset and stores float32 rewards. Use as many environments as evaluated episodes and
  `vec_env.seed(s)`, or wrap each environment in `envs.wrappers.SeededResets`.
- Meta-World ends episodes at success, as `EvalConfig(stop_on_success=True)` does, and never seeds. `metaworld_envs` does.

Which observation opens an episode depends on the autoreset mode of the vector environment. Let d = terminated | truncated of a
step:

    NEXT_STEP   the step after d ignores its action and gives reward 0 and a first observation    start: the step after d
    SAME_STEP   d comes with the first observation of the next episode                            start: d itself
    DISABLED    nothing resets by itself                                                          start: your reset_mask
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from .agent import M3DTAgent
from .agent.inputs import Bools, Float32Array
from .config.checks import is_integer
from .envs.make import make_env
from .envs.wrappers import SeededResets, StopOnSuccess
from .errors import ConfigError, MissingDependencyError, StageError, UnknownTaskError
from .tasks import MAX_OBS_DIM, TaskSpec, get

State = tuple[npt.NDArray[Any], ...]


class SB3Policy:
    """An agent as a Stable-Baselines3 model, which is anything with `predict`.

    task, reset: arguments of `M3DTAgent.reset` (task=..., or prompt=... and statistics=...); the return-to-go stays constant.
    As with SB3's recurrent policies, pass the returned state to the next call: a call without a state opens new episodes.
    """

    def __init__(self, agent: M3DTAgent, task: str | TaskSpec | None = None, **reset: Any) -> None:
        self._agent = agent
        self._reset = functools.partial(agent.reset, task, rtg_mode="constant", **reset)
        self._calls = 0

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: State | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float32Array, State]:
        """Actions (act_dim,) or (N, act_dim), and the state for the next call.

        Args:
            observation: (obs_dim,) or (N, obs_dim).
            state: what the last call returned; None opens an episode in every slot.
            episode_start: (N,) bool, the slots whose observation opens an episode.
            deterministic: ignored; the agent always is.

        Raises:
            StageError: a state that is not the last call's.
            ShapeError, InvalidValueError: as `M3DTAgent.act`.
        """
        if state is None:
            self._reset()
        elif len(state) != 1 or not np.array_equal(state[0], self._calls):
            raise StageError("predict continues only from the state of its last call; pass state=None to begin again")
        starts = None if state is None or episode_start is None else np.asarray(episode_start, np.bool_)
        actions = self._agent.act(observation, reset_mask=starts)  # type: ignore[arg-type]  # a dict is act's ShapeError
        self._calls += 1
        return actions, (np.array(self._calls),)


class MetaWorldPolicy:
    """An agent for `metaworld.evaluation.evaluation`.

    tasks: one per environment, in the order of the environments.

    Raises:
        ConfigError: a task that is not of Meta-World. UnknownTaskError: no such task.
    """

    def __init__(self, agent: M3DTAgent, tasks: Sequence[str | TaskSpec]) -> None:
        self._agent = agent
        self._tasks = [get(task) if isinstance(task, str) else task for task in tasks]
        if not_metaworld := [task.name for task in self._tasks if task.domain != "metaworld"]:
            raise ConfigError(f"these are not Meta-World tasks: {', '.join(not_metaworld)}")
        self._starts = np.zeros(len(self._tasks), bool)

    @classmethod
    def for_envs(cls, agent: M3DTAgent, envs: VectorEnv[Any, Any, Any]) -> MetaWorldPolicy:
        """The adapter for the tasks of a vector environment, told by its `task_name`s.

        Raises:
            UnknownTaskError: a `task_name` that is none of Meta-World's.
        """
        return cls(agent, [_task_of_class(name) for name in envs.get_attr("task_name")])  # type: ignore[attr-defined]

    def reset(self, env_mask: Bools) -> None:
        """Marks the slots whose next observation opens an episode: those where `env_mask` (N,) is True."""
        self._starts = np.asarray(env_mask, np.bool_)
        if self._starts.all():
            self._agent.reset(self._tasks, rtg_mode="constant")

    def eval_action(self, observations: npt.NDArray[Any]) -> Float32Array:
        """Actions (N, 4) for observations (N, 39)."""
        more = self._agent.config.state_dim - MAX_OBS_DIM  # of an agent that has wider tasks too
        seen = np.pad(observations, [(0, 0), (0, more)]) if more else observations
        return self._agent.act(seen, reset_mask=self._starts)[:, : self._tasks[0].act_dim]


class _MetaWorldInterface(gym.Wrapper[Any, Any, Any, Any]):
    """What Meta-World's evaluation needs of an environment: `task_name`, `terminate_on_success` and a method to toggle it."""

    def __init__(self, env: gym.Env[Any, Any], task: TaskSpec) -> None:
        super().__init__(env)
        self.task_name = _classes()[f"{task.name}-v3"]
        self.terminate_on_success = False
        self._stopping: gym.Env[Any, Any] = StopOnSuccess(env)

    def toggle_terminate_on_success(self, on: bool) -> None:
        self.terminate_on_success = on

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._stopping.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return (self._stopping if self.terminate_on_success else self.env).step(action)


def metaworld_envs(tasks: Sequence[str | TaskSpec], *, seed: int = 0) -> SyncVectorEnv:
    """Our Meta-World environments for `metaworld.evaluation.evaluation`, one per task; episode k of each has seed + k.

    Raises:
        UnknownTaskError: no such task. MissingDependencyError: metaworld is not installed.
    """

    def make(task: TaskSpec) -> gym.Env[Any, Any]:
        env = SeededResets(make_env(task), seed)
        return gym.wrappers.RecordEpisodeStatistics(_MetaWorldInterface(env, task))

    specs = [get(task) if isinstance(task, str) else task for task in tasks]
    makers: list[Callable[[], gym.Env[Any, Any]]] = [functools.partial(make, task) for task in specs]
    return SyncVectorEnv(makers, observation_mode="different", autoreset_mode=AutoresetMode.SAME_STEP)


class EpisodeStarts:
    """Which observations of a vector environment open an episode: the `reset_mask` for `M3DTAgent.act`, in all autoreset modes.

    Call `after_reset` with the mask that you gave to `envs.reset`, and `after_step` with what `envs.step` returned.

    Raises:
        ConfigError: the metadata of the vector environment have no autoreset mode.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            valid = ", ".join(str(mode) for mode in AutoresetMode)
            raise ConfigError(f"metadata['autoreset_mode'] of a vector environment must be one of {valid}; got {mode!r}")
        self.mode = mode
        self._ended = np.zeros(envs.num_envs, bool)

    def after_reset(self, reset_mask: Bools | None = None) -> Bools:
        """(N,) bool for the observations that `envs.reset` returned; reset_mask None: every slot was reset."""
        starts = np.ones_like(self._ended) if reset_mask is None else np.asarray(reset_mask, np.bool_).copy()
        self._ended &= ~starts
        return starts

    def after_step(self, terminated: Bools, truncated: Bools) -> Bools:
        """(N,) bool for the observations that `envs.step` returned."""
        before, self._ended = self._ended, np.asarray(terminated | truncated, np.bool_)
        if self.mode is AutoresetMode.NEXT_STEP:
            return before
        return self._ended.copy() if self.mode is AutoresetMode.SAME_STEP else np.zeros_like(before)


def run_episodes(
    agent: M3DTAgent, envs: VectorEnv[Any, Any, Any], *, episodes: int, seed: int | None = None
) -> list[list[float]]:
    """Runs `episodes` episodes in every slot and returns their returns, by slot and in order; call `agent.reset(...)` first.

    Works in any autoreset mode, and passes the rewards to the agent. seed: the first reset of slot i gets seed + i; later
    resets are not seeded here.

    Raises:
        ConfigError: `episodes` is no integer >= 1, or as `EpisodeStarts`.
        StageError: the agent was not reset.
        ShapeError, InvalidValueError: as `M3DTAgent.act`.
    """
    if not is_integer(episodes) or episodes < 1:
        raise ConfigError(f"episodes must be an integer >= 1; got {episodes!r}")
    tracker = EpisodeStarts(envs)
    obs, _ = envs.reset(seed=seed)
    starts, reward = tracker.after_reset(), np.zeros(envs.num_envs)
    totals = np.zeros(envs.num_envs)
    finished: list[list[float]] = [[] for _ in range(envs.num_envs)]
    while any(len(returns) < episodes for returns in finished):
        active = np.array([len(returns) < episodes for returns in finished])
        actions = agent.act(obs, reward=reward, reset_mask=starts, active=active)
        obs, reward, terminated, truncated, _ = envs.step(actions)
        starts = tracker.after_step(terminated, truncated)
        totals += reward
        ended = terminated | truncated
        for i in np.flatnonzero(ended):
            finished[i] = [*finished[i], float(totals[i])][:episodes]
        totals[ended] = 0.0
        if tracker.mode is AutoresetMode.DISABLED and ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended})
            starts = tracker.after_reset(ended)
    return finished


@functools.cache
def _classes() -> dict[str, str]:
    """Meta-World's task name, such as "reach-v3" → the name of its class, by which Meta-World's evaluation calls it."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise MissingDependencyError("metaworld is not installed: pip install 'm3dt-agent[envs]'") from error
    return {name: cls.__name__ for name, cls in ALL_V3_ENVIRONMENTS.items()}


def _task_of_class(class_name: str) -> TaskSpec:
    by_class = {cls: name.removesuffix("-v3") for name, cls in _classes().items()}
    if class_name not in by_class:
        raise UnknownTaskError(f"Meta-World has no environment class {class_name!r}")
    return get(by_class[class_name])
