"""Trains a behavior policy for one task with soft actor-critic (sbx, extra `[behavior]`), and exports it in our format.

The shipped policies of the 110 tasks outside Meta-World were learned by this recipe: two hidden layers of 128, batches of 128,
32 updates every 32 steps, learning rate 7e-4 (cartpole-balance reaches 999 in 30,000 steps). Some tasks, mostly those of sparse
reward, needed a shaped training reward (`SHAPED_REWARDS`); the returns are always measured with the true one. A goal task is
trained on its own goal, with observations relative to it (`goal_features`).

A run saves checkpoints and continues from the newest one; `behavior_checkpoints` draws the files and says how snapshots of the
actor become levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from ..envs.make import make_env
from ..errors import ConfigError, MissingDependencyError
from ..system.disk import user_path
from ..tasks import TaskSpec
from .behavior import MeasuredReturn
from .behavior_checkpoints import (
    Layers,
    Snapshot,
    choose_levels,
    export,
    load_state,
    newest_checkpoint,
    read_snapshots,
    save_checkpoint,
)
from .behavior_policies import Float32Array, MLPPolicy, goal_features
from .shards import rollout

__all__ = [
    "SHAPED_REWARDS",
    "BehaviorTrainingConfig",
    "RewardShaping",
    "Snapshot",
    "choose_levels",
    "export",
    "newest_checkpoint",
    "train_behavior",
]

RewardShaping: TypeAlias = Callable[[Float32Array, float], float]
"""(observation after the step (obs_dim,), true reward) → the reward to train on."""

_HIDDEN = 128


@dataclass(frozen=True, slots=True)
class BehaviorTrainingConfig:
    """How long to train, and how often to measure.

    steps: environment steps in all; a finished run continues if this is raised.
    checkpoint_every: steps between checkpoints. At each one the policy is measured.
    evaluation_episodes: episodes per measurement, with the true reward.
    learning_starts: number of first steps, in which actions are uniformly random and nothing is learned.

    Raises:
        ConfigError: a value out of range.
    """

    steps: int = 100_000
    seed: int = 0
    checkpoint_every: int = 10_000
    evaluation_episodes: int = 5
    learning_starts: int = 1_000

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "evaluation_episodes", "learning_starts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"BehaviorTrainingConfig.{name} must be an integer >= 1; got {getattr(self, name)!r}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"BehaviorTrainingConfig.seed must be in [0, 2**31); got {self.seed!r}")


def _near(scale: float, *entries: int) -> RewardShaping:
    """½·reward + ½·exp(-scale·distance), where the distance is the norm of these entries of the observation."""
    return lambda observation, reward: 0.5 * reward + 0.5 * float(np.exp(-scale * np.linalg.norm(observation[list(entries)])))


def _high(entry: int, low: float, high: float) -> RewardShaping:
    """½·reward + ½·height, where the height is an entry of the observation, scaled from [low, high] to [0, 1] and clipped."""
    return lambda observation, reward: 0.5 * reward + 0.5 * float(np.clip((observation[entry] - low) / (high - low), 0.0, 1.0))


SHAPED_REWARDS: Mapping[str, RewardShaping] = {
    "reacher-hard": _near(15.0, 2, 3),  # finger to target
    "reacher-three-hard": _near(15.0, 3, 4),
    "fish-swim": _near(3.0, 8, 9, 10),  # mouth to target
    "pendulum-swingup": _high(0, -1.0, 1.0),  # cosine of the pole's angle
    "cartpole-swingup-sparse": _high(1, -1.0, 1.0),
    "hopper-stand": _high(0, -1.0, 0.0),  # height of the torso below its start
    "hopper-hop": _high(0, -1.0, 0.0),
    "hopper-hop-backwards": _high(0, -1.0, 0.0),
}
"""Training rewards of the tasks that are not learned from their own reward."""


def train_behavior(
    task: TaskSpec,
    folder: str | Path,
    config: BehaviorTrainingConfig,
    *,
    shaping: RewardShaping | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> dict[str, MeasuredReturn]:
    """Trains a policy for `task` in `folder` and exports its levels; returns level → measured return.

    If the folder holds a checkpoint, the run continues from the newest. The exported file `folder/policies.safetensors` can be
    read by `behavior_policy(task, level, weights=…)`.

    Args:
        task: the task to learn.
        folder: folder of the run; created if needed.
        config: how long to train.
        shaping: the reward to train on; None: the task's entry of `SHAPED_REWARDS` if it has one, else the true reward.
        on_snapshot: called after each checkpoint with its snapshot.

    Raises:
        ConfigError: the folder holds a run of another task or seed.
        MissingDependencyError: sbx or the task's simulator is not installed.
        DiskSpaceError: the disk is full; the previous checkpoint stays.
    """
    folder = user_path(folder)
    shaping = shaping or SHAPED_REWARDS.get(task.name) or (lambda observation, reward: reward)
    checkpoint = newest_checkpoint(folder)
    snapshots = [] if checkpoint is None else read_snapshots(checkpoint, task, config.seed)
    done = snapshots[-1].steps if snapshots else 0
    env = make_env(task)
    model = _make_model(_TrainingEnv(env, task, shaping), config, seed=config.seed + done)
    try:
        if checkpoint is None:
            snapshots.append(_measure(task, model, config))
        else:
            load_state(model, checkpoint, done)
        while model.num_timesteps < config.steps:
            steps = min(config.checkpoint_every, config.steps - model.num_timesteps)
            model.learn(steps, reset_num_timesteps=False)
            snapshots.append(_measure(task, model, config))
            save_checkpoint(folder, task, config.seed, model, snapshots)
            if on_snapshot is not None:
                on_snapshot(snapshots[-1])
    finally:
        env.close()
    return export(task, snapshots, folder)


class _TrainingEnv(gym.Wrapper[Float32Array, Float32Array, Float32Array, Float32Array]):
    """The task with the observations that its policy sees (`goal_features`) and the reward to train on."""

    def __init__(self, env: gym.Env[Float32Array, Float32Array], task: TaskSpec, shaping: RewardShaping) -> None:
        super().__init__(env)
        self._task = task
        self._shaping = shaping
        width = len(goal_features(task, np.zeros(task.obs_dim, np.float32)))
        self.observation_space = Box(-np.inf, np.inf, (width,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Float32Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return goal_features(self._task, observation), info

    def step(self, action: Float32Array) -> tuple[Float32Array, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = self._shaping(observation.copy(), float(reward))
        return goal_features(self._task, observation), reward, terminated, truncated, info


def _make_model(env: gym.Env[Float32Array, Float32Array], config: BehaviorTrainingConfig, seed: int) -> Any:
    try:
        from sbx import SAC
    except ImportError as error:
        raise MissingDependencyError("sbx is not installed: pip install 'm3dt-agent[behavior]'") from error
    return SAC(
        "MlpPolicy",
        env,
        learning_rate=7e-4,
        batch_size=128,
        train_freq=32,
        gradient_steps=32,
        learning_starts=config.learning_starts,
        buffer_size=config.steps + 32,  # a run stops at a multiple of train_freq
        policy_kwargs={"net_arch": [_HIDDEN, _HIDDEN]},
        seed=seed,
    )


def _actor_layers(model: Any) -> Layers:
    """The deterministic actor's layers. sbx numbers the dense layers in order; the fourth gives the log deviation."""
    dense = model.policy.actor_state.params["params"]
    return tuple(
        np.array(dense[f"Dense_{i}"][part], np.float32)  # kernels are (in, out)
        for i in range(3)
        for part in ("kernel", "bias")
    )


def _measure(task: TaskSpec, model: Any, config: BehaviorTrainingConfig) -> Snapshot:
    """A snapshot of the actor, measured with the true reward; every measurement of a run uses the same episodes."""
    layers = _actor_layers(model)
    policy = MLPPolicy(task, layers)
    env = make_env(task)
    try:
        episodes = [rollout(env, task, policy, config.seed + i) for i in range(config.evaluation_episodes)]
    finally:
        env.close()
    returns = [episode.episode_return for episode in episodes]
    scores = [
        task.normalized_score(episode.episode_return, None if episode.success is None else bool(episode.success.any()))
        for episode in episodes
    ]
    measured = MeasuredReturn(mean=float(np.mean(returns)), std=float(np.std(returns)), normalized=float(np.mean(scores)))
    return Snapshot(int(model.num_timesteps), layers, measured)
