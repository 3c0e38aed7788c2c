"""Behavior policies, which act while demonstrations are collected: the levels that each task has, and the policy of a level.

    level      Meta-World (50 tasks)            the other 110 tasks
    random     uniform in [-1, 1]               uniform in [-1, 1]
    zero       the zero action                  the zero action
    novice     –                                an early snapshot of training, where there is one
    medium     –                                a later snapshot, where there is one
    expert     Meta-World's scripted policy     the best snapshot trained for this project
    planner    –                                four DMControl tasks whose expert is weak: a sampling planner (see `planner`)

Trained policies are multilayer perceptrons with two hidden layers (128, 128): a = tanh(relu(relu(x·w0 + b0)·w1 + b1)·w2 + b2).
They are stored in float16 as `<task or domain>/<level>/{w0,b0,w1,b1,w2,b2}` in `assets/behavior_policies.safetensors`; the file
`behavior_returns.json` beside it holds their measured returns. One policy serves all 40 ant-dir tasks, and one all 40
cheetah-vel tasks, because they see the observation relative to their goal (`goal_features`).

Two settings lie between random and expert. `noise` adds Gaussian noise of that standard deviation to every action; a level may
carry its own, as in "expert+0.3". Collection can also mix levels over episodes. Actions are always in [-1, 1].

"Expert" means a level here; elsewhere in this package it means an expert of the mixture.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from safetensors import SafetensorError, safe_open

from ...errors import ConfigError
from ...system.disk import open_regular, user_path
from ...tasks import TASKS, TaskSpec
from .planner import PLANS, PlannerPolicy
from .policies import (
    LAYER_NAMES,
    BehaviorPolicy,
    Float32Array,
    MLPPolicy,
    NoisyPolicy,
    RandomPolicy,
    ScriptedPolicy,
    ZeroPolicy,
    goal_features,
    policy_name,
)

SNAPSHOT_LEVELS = ("novice", "medium", "expert")
"""Levels of the trained policies, worst first."""
PLANNER_LEVEL = "planner"
"""Level of the sampling planner."""
_WEIGHTS_ASSET = "behavior_policies.safetensors"
_RETURNS_ASSET = "behavior_returns.json"


@dataclass(frozen=True, slots=True)
class MeasuredReturn:
    """Measured undiscounted return of a policy without noise.

    mean, std: over the episodes. normalized: mean normalized score, on the scale of `TaskSpec.normalized_score`.
    """

    mean: float
    std: float
    normalized: float


@dataclass(frozen=True, slots=True)
class BehaviorInfo:
    """The behavior policies of one task, as `m3dt behavior list` prints them. returns: of the levels that were measured."""

    task: TaskSpec
    kind: Literal["scripted", "trained"]
    levels: tuple[str, ...]
    returns: dict[str, MeasuredReturn]


def behavior_policy(
    task: TaskSpec,
    level: str = "expert",
    noise: float = 0.0,
    *,
    weights: str | Path | None = None,
    env: gym.Env[Any, Any] | None = None,
) -> BehaviorPolicy:
    """The policy of `task` at `level`.

    Args:
        task: the task to act in.
        level: random, zero, novice, medium, expert or planner (see `levels`); "scripted" is another name for Meta-World's
            expert. A level may carry its own noise, which takes precedence over `noise`: "expert+0.3".
        noise: standard deviation of the Gaussian noise added to actions; the random level stays uniform.
        weights: a file of trained policies to read instead of the shipped one, as `train_behavior` exports it.
        env: the environment in which the policy will act. Only "planner" needs it: it looks ahead in its simulator.

    Raises:
        ConfigError: the task has no such level, the noise is negative or not finite, `weights` cannot be read, or a planner
            is given no `env`.
        MissingDependencyError: the policy is Meta-World's and metaworld is not installed.
    """
    level, noise = parse_level(level, noise)
    if task.domain == "metaworld" and level == "scripted":
        level = "expert"
    if level == "random":
        return RandomPolicy(task.act_dim)
    policy: BehaviorPolicy
    if level == PLANNER_LEVEL and task.name in PLANS:
        if env is None:
            raise ConfigError(f"{task.name}: a planner needs the environment it acts in (env=); `m3dt collect` passes it")
        policy = PlannerPolicy(task, env)
    elif level == "zero":
        policy = ZeroPolicy(task.act_dim)
    elif task.domain == "metaworld" and level == "expert" and weights is None:
        policy = ScriptedPolicy(task)
    else:
        policy = MLPPolicy(task, _trained_layers(task, level, weights))
    return NoisyPolicy(policy, noise) if noise > 0 else policy


def parse_level(level: str, noise: float = 0.0) -> tuple[str, float]:
    """Splits a level from its noise: "expert+0.3" gives ("expert", 0.3). A level without its own noise gets `noise`.

    Raises:
        ConfigError: the noise is no number, negative or not finite.
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
    """The levels of `task`, worst first: random, zero, then its trained or scripted ones, then its planner if it has one."""
    if task.domain == "metaworld":
        return ("random", "zero", "expert")
    trained = (name for name in SNAPSHOT_LEVELS if name in _returns_table().get(policy_name(task), {}))
    return ("random", "zero", *trained, *((PLANNER_LEVEL,) if task.name in PLANS else ()))


def measured_returns(task: TaskSpec) -> dict[str, MeasuredReturn]:
    """Level → measured return, for the levels that were measured.

    DMControl was measured over 20 episodes per task. ant-dir and cheetah-vel were measured over 80 episodes of all 40 goals;
    every goal has the same figures. Meta-World's scripted policies are left out: they succeed in 97.8% of the episodes
    (measured over 10 random goals of each of the 50 tasks).
    """
    return {level: MeasuredReturn(**row) for level, row in _returns_table().get(policy_name(task), {}).items()}


def behavior_table(tasks: Iterable[TaskSpec] = TASKS) -> list[BehaviorInfo]:
    """For each task the kind of its policy, its levels and their measured returns."""
    return [
        BehaviorInfo(task, "scripted" if task.domain == "metaworld" else "trained", levels(task), measured_returns(task))
        for task in tasks
    ]


@functools.cache
def _returns_table() -> dict[str, dict[str, dict[str, float]]]:
    table = json.loads(resources.files("m3dt_agent").joinpath("assets", _RETURNS_ASSET).read_text())
    assert isinstance(table, dict)
    return table


def _trained_layers(task: TaskSpec, level: str, weights: str | Path | None) -> tuple[Float32Array, ...]:
    if weights is not None:
        return _read_layers(user_path(weights), task, level)
    with resources.as_file(resources.files("m3dt_agent").joinpath("assets", _WEIGHTS_ASSET)) as path:
        return _read_layers(path, task, level)


def _read_layers(path: Path, task: TaskSpec, level: str) -> tuple[Float32Array, ...]:
    """Six float32 arrays, as in `LAYER_NAMES`. A task's own policy takes precedence over its domain's."""
    try:
        with open_regular(path), safe_open(path, framework="numpy") as file:
            keys = set(file.keys())
            for name in (task.name, policy_name(task)):
                if f"{name}/{level}/w0" in keys:
                    layers = [file.get_tensor(f"{name}/{level}/{layer}").astype(np.float32) for layer in LAYER_NAMES]
                    return _checked_layers(path, f"{name}/{level}", layers, task)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a readable file of behavior policies: {error}") from error
    found = {key.split("/")[1] for key in keys if "/" in key and key.split("/")[0] in (task.name, policy_name(task))}
    valid = ("random", "zero", *sorted(found | ({"expert"} if task.domain == "metaworld" else set())))
    raise ConfigError(f"task {task.name!r} has no behavior policy {level!r}; it has {', '.join(valid)}")


def _checked_layers(path: Path, name: str, layers: list[Float32Array], task: TaskSpec) -> tuple[Float32Array, ...]:
    """The layers, if they are a policy of `task`: matrices and biases that fit each other, all finite."""
    inputs = len(goal_features(task, np.zeros(task.obs_dim, np.float32)))
    for i in range(0, len(layers), 2):
        weights, bias = layers[i], layers[i + 1]
        outputs = task.act_dim if i == len(layers) - 2 else bias.size
        if weights.shape != (inputs, outputs) or bias.shape != (outputs,):
            shapes = f"{weights.shape} and {bias.shape}"
            raise ConfigError(f"{path}: layer {i // 2} of {name} is {shapes}, which does not fit task {task.name!r}")
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ConfigError(f"{path}: layer {i // 2} of {name} holds a NaN or an infinity")
        inputs = outputs
    return tuple(layers)
