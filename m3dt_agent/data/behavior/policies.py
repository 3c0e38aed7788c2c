"""The behavior policies themselves: objects that map observations to actions. `behavior` chooses one for a task and a level."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, InvalidValueError, MissingDependencyError, ShapeError
from ...tasks import TaskSpec, lookup

Float32Array: TypeAlias = NDArray[np.float32]
"""Observations, actions and weights."""
LAYER_NAMES = ("w0", "b0", "w1", "b1", "w2", "b2")
"""Names of a trained policy's tensors, in the order in which they are applied: weights (in, out) and bias of three layers."""


class BehaviorPolicy(Protocol):
    """Who acts in an episode: it is reset with the episode's seed, then maps each observation to an action.

    It may also have `rewarded(reward)`, which is told what every action earned; and `label`, which holds after each action what
    the demonstrator itself would have done instead, (act_dim,). Labels are kept with the episode.
    """

    def reset(self, seed: int) -> None:
        """Begins an episode. Everything that the policy draws at random in it derives from `seed`."""

    def __call__(self, observation: Float32Array) -> Float32Array:
        """Returns the action (act_dim,) float32 in [-1, 1] for a raw observation (obs_dim,) float32."""


class RandomPolicy:
    """Draws actions uniformly from [-1, 1]."""

    def __init__(self, act_dim: int) -> None:
        self._act_dim = act_dim
        self._generator = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._generator = np.random.default_rng([seed, 2])  # another stream than the environment's for this seed

    def __call__(self, observation: Float32Array) -> Float32Array:
        return self._generator.uniform(-1.0, 1.0, self._act_dim).astype(np.float32)


class ZeroPolicy:
    """Always returns the zero action."""

    def __init__(self, act_dim: int) -> None:
        self._act_dim = act_dim

    def reset(self, seed: int) -> None:
        """Does nothing."""

    def __call__(self, observation: Float32Array) -> Float32Array:
        return np.zeros(self._act_dim, np.float32)


class ScriptedPolicy:
    """Meta-World's scripted policy of a task. Its actions reach 7.7 in magnitude; they are clipped to [-1, 1].

    Raises:
        MissingDependencyError: metaworld is not installed.
    """

    def __init__(self, task: TaskSpec) -> None:
        self._make = lookup(_scripted_policies(), f"{task.name}-v3", "scripted policy")
        self._policy: Any = self._make()

    def reset(self, seed: int) -> None:
        self._policy = self._make()

    def __call__(self, observation: Float32Array) -> Float32Array:
        action: Float32Array = np.clip(self._policy.get_action(observation.astype(np.float64)), -1.0, 1.0).astype(np.float32)
        return action


class MLPPolicy:
    """A trained policy: features (n,) → relu (128,) → relu (128,) → tanh (act_dim,). layers: arrays as in `LAYER_NAMES`."""

    def __init__(self, task: TaskSpec, layers: tuple[Float32Array, ...]) -> None:
        self._task = task
        self.layers = layers

    def reset(self, seed: int) -> None:
        """Does nothing: the policy is deterministic and has no state."""

    def __call__(self, observation: Float32Array) -> Float32Array:
        w0, b0, w1, b1, w2, b2 = self.layers
        x = goal_features(self._task, observation)  # (n,)
        x = np.maximum(x @ w0 + b0, 0.0)  # (128,)
        x = np.maximum(x @ w1 + b1, 0.0)  # (128,)
        action: Float32Array = np.tanh(x @ w2 + b2)  # (act_dim,)
        return action


class NoisyPolicy:
    """Adds Gaussian noise of standard deviation `noise` to another policy's actions and clips them to [-1, 1].

    Its `label` is the action without the noise.
    """

    def __init__(self, policy: BehaviorPolicy, noise: float) -> None:
        self.label: Float32Array | None = None
        self.rewarded = getattr(policy, "rewarded", None)
        self.policy = policy
        self._noise = noise
        self._generator = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self.policy.reset(seed)
        self._generator = np.random.default_rng([seed, 1])

    def __call__(self, observation: Float32Array) -> Float32Array:
        self.label = self.policy(observation)
        noise = self._generator.normal(0.0, self._noise, self.label.shape)
        return np.clip(self.label + noise, -1.0, 1.0).astype(np.float32)


class LabelledPolicy:
    """`actor` acts; its `label` is what `demonstrator` would have done, as for dataset aggregation (Ross et al. 2011)."""

    def __init__(self, actor: BehaviorPolicy, demonstrator: BehaviorPolicy) -> None:
        self.label: Float32Array | None = None
        self.rewarded = getattr(actor, "rewarded", None)
        self._actor, self._demonstrator = actor, demonstrator

    def reset(self, seed: int) -> None:
        self._actor.reset(seed)
        self._demonstrator.reset(seed)

    def __call__(self, observation: Float32Array) -> Float32Array:
        self.label = self._demonstrator(observation.copy())
        return self._actor(observation)


class CallablePolicy:
    """Makes a policy of a user's function and checks its actions; see `from_callable`."""

    def __init__(self, task: TaskSpec, act: Callable[[Float32Array], Any], reset: Callable[[int], None] | None) -> None:
        self._task = task
        self._act = act
        self._reset = reset
        self.rewarded = getattr(act, "rewarded", None)

    def reset(self, seed: int) -> None:
        if self._reset is not None:
            self._reset(seed)

    def __call__(self, observation: Float32Array) -> Float32Array:
        action = np.asarray(self._act(observation), np.float32)
        if action.shape != (self._task.act_dim,):
            raise ShapeError(f"{self._task.name}: the policy gave an action {action.shape}; expected ({self._task.act_dim},)")
        if not np.isfinite(action).all():
            raise InvalidValueError(f"{self._task.name}: the policy gave a NaN or infinite action: {action.tolist()}")
        return np.clip(action, -1.0, 1.0)


def goal_features(task: TaskSpec, observation: Float32Array) -> Float32Array:
    """The input of a trained policy, float32: the observation (obs_dim,), made relative to the task's goal.

    cheetah-vel: the goal velocity is appended, giving (21,).
    ant-dir: the torso's quaternion (entries 1-4, w first) and its linear velocity in the plane (entries 13, 14) are turned by
        -g about z, where g is the goal direction; still (27,). The rest does not depend on the heading: the angular velocity is
        in the body's frame, and so are the joints.
    Other tasks: the observation itself.
    """
    if task.goal_velocity is not None:
        return np.append(observation, np.float32(task.goal_velocity))
    if task.goal_direction is None:
        return observation
    features = observation.copy()
    w, x, y, z = observation[1:5]
    c, s = math.cos(task.goal_direction / 2), -math.sin(task.goal_direction / 2)
    features[1:5] = (c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w)
    c, s = math.cos(task.goal_direction), math.sin(task.goal_direction)
    vx, vy = observation[13:15]
    features[13:15] = (c * vx + s * vy, c * vy - s * vx)
    return features


def from_callable(
    task: TaskSpec, act: Callable[[Float32Array], Any], *, reset: Callable[[int], None] | None = None
) -> BehaviorPolicy:
    """Makes a behavior policy of any function observation (obs_dim,) → action (act_dim,). Actions are clipped to [-1, 1].

    `reset`, if given, is called with the seed at the start of every episode. When the policy acts, it raises ShapeError for an
    action of the wrong shape and InvalidValueError for one that is not finite; both name the task.
    """
    return CallablePolicy(task, act, reset)


def from_sb3(task: TaskSpec, path: str | Path, *, algorithm: str, trust_pickle: bool = False) -> BehaviorPolicy:
    """Makes a behavior policy of a Stable-Baselines3 checkpoint of `algorithm` (A2C, DDPG, PPO, SAC or TD3), deterministic.

    Such a checkpoint contains pickles, and loading it runs whatever code its author put there: `trust_pickle` must be set.

    Raises:
        ConfigError: trust_pickle is False, the algorithm is another, or the checkpoint's spaces do not fit the task.
        MissingDependencyError: Stable-Baselines3 is not installed.
    """
    if not trust_pickle:
        raise ConfigError(
            f"{path}: loading a Stable-Baselines3 checkpoint can run code; pass trust_pickle=True if you trust it"
        )
    try:
        import stable_baselines3 as sb3
    except ImportError as error:
        raise MissingDependencyError("Stable-Baselines3 is not installed: pip install 'm3dt-agent[sb3]'") from error
    names = ("A2C", "DDPG", "PPO", "SAC", "TD3")
    if algorithm not in names:
        raise ConfigError(f"algorithm must be one of {', '.join(names)}; got {algorithm!r}")
    model = getattr(sb3, algorithm).load(path, device="cpu")
    shapes = (model.observation_space.shape, model.action_space.shape)
    if shapes != ((task.obs_dim,), (task.act_dim,)):
        valid = ((task.obs_dim,), (task.act_dim,))
        raise ConfigError(f"{path}: its observations and actions are {shapes}; {task.name} has {valid}")
    return from_callable(task, lambda observation: model.predict(observation, deterministic=True)[0])


@dataclass(frozen=True, slots=True)
class SB3Checkpoint:
    """A picklable factory for `collect(policy=…)`: called with a task in a worker, it loads the checkpoint with `from_sb3`."""

    path: str
    algorithm: str
    trust_pickle: bool = False

    def __call__(self, task: TaskSpec) -> BehaviorPolicy:
        return from_sb3(task, self.path, algorithm=self.algorithm, trust_pickle=self.trust_pickle)


def policy_name(task: TaskSpec) -> str:
    """The name under which the trained policy of `task` is stored: the domain where one policy serves all goals."""
    return task.domain if task.domain in ("ant-dir", "cheetah-vel") else task.name


@functools.cache
def _scripted_policies() -> dict[str, Any]:
    try:
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise MissingDependencyError("metaworld is not installed: pip install 'm3dt-agent[envs]'") from error
    # They warn about every action beyond ±1, which is nearly every action; `ScriptedPolicy` clips them.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    return dict(ENV_POLICY_MAP)
