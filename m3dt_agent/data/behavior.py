"""Behavior policies: who acts while demonstrations are collected.

    level      Meta-World (50 tasks)            the other 110 tasks
    random     uniform in [-1, 1]               uniform in [-1, 1]
    zero       the zero action                  the zero action
    novice     –                                an early snapshot of training, where there is one
    medium     –                                a later snapshot, where there is one
    expert     Meta-World's scripted policy     the best snapshot trained for this project
    planner    –                                four weak tasks of DMControl: a sampling planner (see `planner`)

Trained policies are multilayer perceptrons of two hidden layers (128, 128), a = tanh(relu(relu(x·w0 + b0)·w1 + b1)·w2 + b2),
stored in float16 as `<task or domain>/<level>/{w0,b0,w1,b1,w2,b2}` in `assets/behavior_policies.safetensors`;
`behavior_returns.json` beside it holds what each was measured to reach. One policy serves all 40 ant-dir tasks and one all 40
cheetah-vel tasks, because they see the observation relative to their goal (`goal_features`).

From random to expert there are two more knobs. `noise` adds Gaussian noise of that standard deviation to every action; a level
may carry its own, as in "expert+0.3". Collection mixes levels over episodes. Actions always end in [-1, 1].

"Expert" is a level here; elsewhere in this package the word means an expert of the mixture.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError, InvalidValueError, MissingDependencyError, ShapeError
from ..tasks import TASKS, TaskSpec, lookup
from .planner import PLANS, PlannerPolicy

Array: TypeAlias = NDArray[np.float32]

SNAPSHOT_LEVELS = ("novice", "medium", "expert")
"""Levels of the trained policies, worst first."""
PLANNER_LEVEL = "planner"
_LAYER_NAMES = ("w0", "b0", "w1", "b1", "w2", "b2")
_WEIGHTS_ASSET = "behavior_policies.safetensors"
_RETURNS_ASSET = "behavior_returns.json"


class BehaviorPolicy(Protocol):
    """What collection asks of a policy: be reset with an episode's seed, then map observations to actions."""

    def reset(self, seed: int) -> None:
        """Begin an episode; everything random in it derives from `seed`."""

    def __call__(self, observation: Array) -> Array:
        """The action (act_dim,) float32 in [-1, 1] for a raw observation (obs_dim,) float32."""


@dataclass(frozen=True, slots=True)
class MeasuredReturn:
    """Undiscounted return of a policy with deterministic actions: mean and deviation over episodes, mean normalized score."""

    mean: float
    std: float
    normalized: float


@dataclass(frozen=True, slots=True)
class BehaviorInfo:
    """What there is for one task, as `m3dt behavior list` prints it."""

    task: TaskSpec
    kind: Literal["scripted", "trained"]
    levels: tuple[str, ...]
    returns: dict[str, MeasuredReturn]


class RandomPolicy:
    """Uniform actions in [-1, 1]."""

    def __init__(self, act_dim: int) -> None:
        self._act_dim = act_dim
        self._generator = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._generator = np.random.default_rng([seed, 2])  # not the stream that an environment makes of the same seed

    def __call__(self, observation: Array) -> Array:
        return self._generator.uniform(-1.0, 1.0, self._act_dim).astype(np.float32)


class ZeroPolicy:
    """The zero action."""

    def __init__(self, act_dim: int) -> None:
        self._act_dim = act_dim

    def reset(self, seed: int) -> None:
        """Nothing to begin."""

    def __call__(self, observation: Array) -> Array:
        return np.zeros(self._act_dim, np.float32)


class ScriptedPolicy:
    """Meta-World's scripted policy of a task; its actions reach 7.7 and are clipped to [-1, 1]."""

    def __init__(self, task: TaskSpec) -> None:
        self._make = lookup(_scripted_policies(), f"{task.name}-v3", "scripted policy")
        self._policy: Any = self._make()

    def reset(self, seed: int) -> None:
        self._policy = self._make()

    def __call__(self, observation: Array) -> Array:
        action: Array = np.clip(self._policy.get_action(observation.astype(np.float64)), -1.0, 1.0).astype(np.float32)
        return action


class MLPPolicy:
    """A trained policy: features (n,) → relu (128,) → relu (128,) → tanh (act_dim,)."""

    def __init__(self, task: TaskSpec, layers: tuple[Array, ...]) -> None:
        self._task = task
        self._layers = layers

    def reset(self, seed: int) -> None:
        """Nothing to begin: the policy is deterministic and has no state."""

    def __call__(self, observation: Array) -> Array:
        w0, b0, w1, b1, w2, b2 = self._layers
        x = goal_features(self._task, observation)  # (n,)
        x = np.maximum(x @ w0 + b0, 0.0)  # (128,)
        x = np.maximum(x @ w1 + b1, 0.0)  # (128,)
        action: Array = np.tanh(x @ w2 + b2)  # (act_dim,)
        return action


class NoisyPolicy:
    """Another policy's actions plus Gaussian noise, clipped to [-1, 1]."""

    def __init__(self, policy: BehaviorPolicy, noise: float) -> None:
        self._policy = policy
        self._noise = noise
        self._generator = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        self._generator = np.random.default_rng([seed, 1])

    def __call__(self, observation: Array) -> Array:
        action = self._policy(observation)
        noise = self._generator.normal(0.0, self._noise, action.shape)
        return np.clip(action + noise, -1.0, 1.0).astype(np.float32)


class CallablePolicy:
    """A user's function behind the protocol; see `from_callable`."""

    def __init__(self, task: TaskSpec, act: Callable[[Array], Any], reset: Callable[[int], None] | None) -> None:
        self._task = task
        self._act = act
        self._reset = reset

    def reset(self, seed: int) -> None:
        if self._reset is not None:
            self._reset(seed)

    def __call__(self, observation: Array) -> Array:
        action = np.asarray(self._act(observation), np.float32)
        if action.shape != (self._task.act_dim,):
            raise ShapeError(f"{self._task.name}: the policy gave an action {action.shape}; expected ({self._task.act_dim},)")
        if not np.isfinite(action).all():
            raise InvalidValueError(f"{self._task.name}: the policy gave a NaN or infinite action: {action.tolist()}")
        return np.clip(action, -1.0, 1.0)


def goal_features(task: TaskSpec, observation: Array) -> Array:
    """What a trained policy sees, float32: the observation (obs_dim,) in the frame of the task's goal.

    cheetah-vel appends the goal velocity, (21,). ant-dir turns the torso's quaternion (entries 1-4, w first) and its linear
    velocity in the plane (entries 13, 14) by -g about z, (27,); angular velocity is in the body's frame, height and joints do
    not depend on the heading. Other tasks see the observation itself.
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


def behavior_policy(
    task: TaskSpec,
    level: str = "expert",
    noise: float = 0.0,
    *,
    weights: str | Path | None = None,
    env: gym.Env[Any, Any] | None = None,
) -> BehaviorPolicy:
    """The policy of `task` at `level`, with Gaussian action noise of deviation `noise` (the random level stays uniform).

    `level` may carry its own noise: "expert+0.3" is the expert level with noise 0.3, whatever `noise` says. "scripted" is
    another name for Meta-World's expert level. `weights` reads trained policies from another file in the asset's format (as
    `train_behavior` writes it) instead. `env` is the environment that the actions will go to; only "planner" needs it, which
    looks ahead in its simulator.

    Raises:
        ConfigError: the task has no such level, a noise that is negative or not finite, or a planner without `env`.
        MissingDependencyError: a scripted policy without metaworld installed.
    """
    level, noise = parse_level(level, noise)
    if task.domain == "metaworld" and level == "scripted":
        level = "expert"
    if level == "random":
        return RandomPolicy(task.act_dim)
    policy: BehaviorPolicy
    if level == PLANNER_LEVEL and task.name in PLANS:
        if env is None:
            raise ConfigError(f"{task.name}: a planner acts in one environment, and there is none here; `m3dt collect` has one")
        policy = PlannerPolicy(task, env)
    elif level == "zero":
        policy = ZeroPolicy(task.act_dim)
    elif task.domain == "metaworld" and level == "expert" and weights is None:
        policy = ScriptedPolicy(task)
    else:
        policy = MLPPolicy(task, _trained_layers(task, level, weights))
    return NoisyPolicy(policy, noise) if noise > 0 else policy


def parse_level(level: str, noise: float = 0.0) -> tuple[str, float]:
    """("expert", 0.3) from "expert+0.3"; a level without a noise of its own gets `noise`.

    Raises:
        ConfigError: a noise that is not a number, negative or not finite.
    """
    name, plus, own = level.partition("+")
    try:
        value = float(own) if plus else float(noise)
    except ValueError:
        raise ConfigError(f"level {level!r}: the noise after '+' must be a number; got {own!r}") from None
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"action noise must be finite and >= 0; got {value}")
    return name, value


def levels(task: TaskSpec) -> tuple[str, ...]:
    """The levels `task` has, worst first: random, zero, its trained or scripted ones, its planner."""
    if task.domain == "metaworld":
        return ("random", "zero", "expert")
    trained = (name for name in SNAPSHOT_LEVELS if name in _returns_table().get(_policy_name(task), {}))
    return ("random", "zero", *trained, *((PLANNER_LEVEL,) if task.name in PLANS else ()))


def measured_returns(task: TaskSpec) -> dict[str, MeasuredReturn]:
    """Level → measured return, for the levels that were measured.

    DMControl: 20 episodes per task. ant-dir and cheetah-vel: 80 episodes over all 40 goals, the same figures for every goal.
    Meta-World's scripted policies are not in the table: 97.8% success, measured over 10 random goals of each of the 50 tasks.
    """
    return {level: MeasuredReturn(**row) for level, row in _returns_table().get(_policy_name(task), {}).items()}


def behavior_table(tasks: Iterable[TaskSpec] = TASKS) -> list[BehaviorInfo]:
    """One row per task: the kind of its policy, its levels, their measured returns."""
    return [
        BehaviorInfo(task, "scripted" if task.domain == "metaworld" else "trained", levels(task), measured_returns(task))
        for task in tasks
    ]


def from_callable(task: TaskSpec, act: Callable[[Array], Any], *, reset: Callable[[int], None] | None = None) -> BehaviorPolicy:
    """A behavior policy from any function observation (obs_dim,) → action (act_dim,); actions are clipped to [-1, 1].

    `reset`, if given, is called with the seed at the start of every episode. Acting raises ShapeError or InvalidValueError,
    naming the task, for an action of the wrong shape or with a NaN.
    """
    return CallablePolicy(task, act, reset)


def from_sb3(task: TaskSpec, path: str | Path, *, algorithm: str, trust_pickle: bool = False) -> BehaviorPolicy:
    """The deterministic policy of a Stable-Baselines3 checkpoint of `algorithm` (A2C, DDPG, PPO, SAC or TD3).

    Such a checkpoint contains pickles: loading one runs whatever code its author put there, hence the explicit `trust_pickle`.

    Raises:
        ConfigError: trust_pickle is False, no such algorithm, or the checkpoint's spaces do not fit the task.
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
    """`from_sb3` as a picklable factory for `collect(policy=…)`; `collect` calls it with each task inside its workers."""

    path: str
    algorithm: str
    trust_pickle: bool = False

    def __call__(self, task: TaskSpec) -> BehaviorPolicy:
        return from_sb3(task, self.path, algorithm=self.algorithm, trust_pickle=self.trust_pickle)


def _policy_name(task: TaskSpec) -> str:
    return task.domain if task.domain in ("ant-dir", "cheetah-vel") else task.name


@functools.cache
def _returns_table() -> dict[str, dict[str, dict[str, float]]]:
    table = json.loads(resources.files("m3dt_agent").joinpath("assets", _RETURNS_ASSET).read_text())
    assert isinstance(table, dict)
    return table


def _trained_layers(task: TaskSpec, level: str, weights: str | Path | None) -> tuple[Array, ...]:
    if weights is not None:
        return _read_layers(Path(weights), task, level)
    with resources.as_file(resources.files("m3dt_agent").joinpath("assets", _WEIGHTS_ASSET)) as path:
        return _read_layers(path, task, level)


def _read_layers(path: Path, task: TaskSpec, level: str) -> tuple[Array, ...]:
    """Six float32 arrays; a policy of the task itself goes before one of its domain."""
    try:
        with safe_open(path, framework="numpy") as file:
            keys = set(file.keys())
            for name in (task.name, _policy_name(task)):
                if f"{name}/{level}/w0" in keys:
                    return tuple(file.get_tensor(f"{name}/{level}/{layer}").astype(np.float32) for layer in _LAYER_NAMES)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not a readable file of behavior policies: {error}") from error
    found = {key.split("/")[1] for key in keys if key.split("/")[0] in (task.name, _policy_name(task))}
    valid = ("random", "zero", *sorted(found | ({"expert"} if task.domain == "metaworld" else set())))
    raise ConfigError(f"task {task.name!r} has no behavior policy {level!r}; it has {', '.join(valid)}")


@functools.cache
def _scripted_policies() -> dict[str, Any]:
    try:
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise MissingDependencyError("metaworld is not installed: pip install 'm3dt-agent[envs]'") from error
    # They warn about every action beyond ±1, which is nearly every one; we clip.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    return dict(ENV_POLICY_MAP)
