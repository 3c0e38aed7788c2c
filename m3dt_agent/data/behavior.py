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
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError
from ..tasks import TASKS, TaskSpec
from .behavior_policies import (
    LAYER_NAMES,
    Array,
    BehaviorPolicy,
    MLPPolicy,
    NoisyPolicy,
    RandomPolicy,
    ScriptedPolicy,
    ZeroPolicy,
    policy_name,
)
from .planner import PLANS, PlannerPolicy

SNAPSHOT_LEVELS = ("novice", "medium", "expert")
"""Levels of the trained policies, worst first."""
PLANNER_LEVEL = "planner"
_WEIGHTS_ASSET = "behavior_policies.safetensors"
_RETURNS_ASSET = "behavior_returns.json"


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
    trained = (name for name in SNAPSHOT_LEVELS if name in _returns_table().get(policy_name(task), {}))
    return ("random", "zero", *trained, *((PLANNER_LEVEL,) if task.name in PLANS else ()))


def measured_returns(task: TaskSpec) -> dict[str, MeasuredReturn]:
    """Level → measured return, for the levels that were measured.

    DMControl: 20 episodes per task. ant-dir and cheetah-vel: 80 episodes over all 40 goals, the same figures for every goal.
    Meta-World's scripted policies are not in the table: 97.8% success, measured over 10 random goals of each of the 50 tasks.
    """
    return {level: MeasuredReturn(**row) for level, row in _returns_table().get(policy_name(task), {}).items()}


def behavior_table(tasks: Iterable[TaskSpec] = TASKS) -> list[BehaviorInfo]:
    """One row per task: the kind of its policy, its levels, their measured returns."""
    return [
        BehaviorInfo(task, "scripted" if task.domain == "metaworld" else "trained", levels(task), measured_returns(task))
        for task in tasks
    ]


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
            for name in (task.name, policy_name(task)):
                if f"{name}/{level}/w0" in keys:
                    return tuple(file.get_tensor(f"{name}/{level}/{layer}").astype(np.float32) for layer in LAYER_NAMES)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not a readable file of behavior policies: {error}") from error
    found = {key.split("/")[1] for key in keys if key.split("/")[0] in (task.name, policy_name(task))}
    valid = ("random", "zero", *sorted(found | ({"expert"} if task.domain == "metaworld" else set())))
    raise ConfigError(f"task {task.name!r} has no behavior policy {level!r}; it has {', '.join(valid)}")
