"""Trains a behavior policy for one task with an algorithm of sbx (extra `[behavior]`), and exports it in our format.

Most shipped policies of the 110 tasks outside Meta-World were learned with soft actor-critic: two hidden layers of 128, batches
of 128, 32 updates every 32 steps, learning rate 7e-4 (cartpole-balance reaches 999 in 30,000 steps). Some tasks, mostly those
of sparse reward, needed a shaped training reward (`SHAPED_REWARDS`); the returns are always measured with the true one. A goal
task is trained on its own goal, with observations relative to it (`goal_features`).

A run can begin with another policy of the task (`start`): its episodes fill the replay buffer, and where it is a trained one,
the actor begins with its weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from ...envs.make import make_env
from ...errors import ConfigError
from ...system.disk import user_path
from ...tasks import TaskSpec
from ..episodes import Episode
from ..shards import rollout
from .catalog import MeasuredReturn, behavior_policy
from .checkpoints import (
    Run,
    Snapshot,
    choose_levels,
    export,
    load_state,
    newest_checkpoint,
    read_snapshots,
    save_checkpoint,
)
from .learners import ALGORITHMS, actor_layers, make_learner, start_from, takes_layers
from .policies import Float32Array, MLPPolicy, NoisyPolicy, goal_features

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


@dataclass(frozen=True, slots=True)
class BehaviorTrainingConfig:
    """How long to train, and how often to measure.

    steps: environment steps in all; a finished run continues if this is raised.
    checkpoint_every: steps between checkpoints. At each one the policy is measured.
    evaluation_episodes: episodes per measurement, with the true reward.
    learning_starts: number of first steps, in which actions are uniformly random and nothing is learned; not with `start`.
    algorithm: sac, sac-ln, tqc or crossq (see `learners`).
    start: the level of another policy of the task to begin with, such as "expert+0.2" or "planner"; None: from nothing.
    start_episodes: how many of its episodes the replay buffer begins with. They are not counted in `steps`.

    Raises:
        ConfigError: a value out of range.
    """

    steps: int = 100_000
    seed: int = 0
    checkpoint_every: int = 10_000
    evaluation_episodes: int = 5
    learning_starts: int = 1_000
    algorithm: str = "sac"
    start: str | None = None
    start_episodes: int = 40

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            names = ", ".join(ALGORITHMS)
            raise ConfigError(f"BehaviorTrainingConfig.algorithm must be one of {names}; got {self.algorithm!r}")
        for name in ("steps", "checkpoint_every", "evaluation_episodes", "learning_starts", "start_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"BehaviorTrainingConfig.{name} must be an integer >= 1; got {getattr(self, name)!r}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"BehaviorTrainingConfig.seed must be in [0, 2**31); got {self.seed!r}")


def _near(scale: float, *entries: int) -> RewardShaping:
    """½·reward + ½·exp(-scale·distance), where the distance is the norm of these entries of the observation."""
    return lambda observation, reward: 0.5 * reward + 0.5 * float(np.exp(-scale * np.linalg.norm(observation[list(entries)])))


def _outside(scale: float, entry: int) -> RewardShaping:
    """½·reward + ½·exp(-scale·distance), where the distance is an entry of the observation; 0 where that is negative."""
    return lambda observation, reward: 0.5 * reward + 0.5 * float(np.exp(-scale * max(float(observation[entry]), 0.0)))


def _high(entry: int, low: float, high: float) -> RewardShaping:
    """½·reward + ½·height, where the height is an entry of the observation, scaled from [low, high] to [0, 1] and clipped."""
    return lambda observation, reward: 0.5 * reward + 0.5 * float(np.clip((observation[entry] - low) / (high - low), 0.0, 1.0))


SHAPED_REWARDS: Mapping[str, RewardShaping] = {
    "reacher-hard": _near(15.0, 2, 3),  # finger to target
    "reacher-three-hard": _near(15.0, 3, 4),
    "fish-swim": _near(3.0, 8, 9, 10),  # mouth to target
    "finger-turn-easy": _outside(10.0, 11),  # from the target's edge to the spinner's tip
    "finger-turn-hard": _outside(10.0, 11),
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
        ConfigError: the folder holds a run of another task, seed, algorithm or start, or the task has no such start.
        MissingDependencyError: sbx or the task's simulator is not installed.
        DiskSpaceError: the disk is full; the previous checkpoint stays.
    """
    folder = user_path(folder)
    shaping = shaping or SHAPED_REWARDS.get(task.name) or (lambda observation, reward: reward)
    run = Run(task.name, config.seed, config.algorithm, config.start)
    checkpoint = newest_checkpoint(folder)
    snapshots = [] if checkpoint is None else read_snapshots(checkpoint, run)
    env = make_env(task)
    try:
        training_env = _TrainingEnv(env, task, shaping)
        model = _make_model(training_env, config, done=snapshots[-1].steps if snapshots else 0)
        if checkpoint is not None:
            load_state(model, checkpoint, snapshots[-1].steps)
        else:
            if config.start is not None:
                _start(model, training_env, config.start, config)
            snapshots.append(_measure(task, model, config))
        while model.num_timesteps < config.steps:
            steps = min(config.checkpoint_every, config.steps - model.num_timesteps)
            model.learn(steps, reset_num_timesteps=False)
            snapshots.append(_measure(task, model, config))
            save_checkpoint(folder, run, model, snapshots)
            if on_snapshot is not None:
                on_snapshot(snapshots[-1])
    finally:
        env.close()
    return export(task, snapshots, folder, only_expert=config.start is not None)


class _TrainingEnv(gym.Wrapper[Float32Array, Float32Array, Float32Array, Float32Array]):
    """The task with the observations that its policy sees (`goal_features`) and the reward to train on."""

    def __init__(self, env: gym.Env[Float32Array, Float32Array], task: TaskSpec, shaping: RewardShaping) -> None:
        super().__init__(env)
        self.task = task
        self._shaping = shaping
        width = len(goal_features(task, np.zeros(task.obs_dim, np.float32)))
        self.observation_space = Box(-np.inf, np.inf, (width,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Float32Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return goal_features(self.task, observation), info

    def step(self, action: Float32Array) -> tuple[Float32Array, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = self._shaping(observation.copy(), float(reward))
        return goal_features(self.task, observation), reward, terminated, truncated, info

    def to_training(self, episode: Episode) -> Episode:
        """An episode of the task as one of this environment."""
        seen = np.stack([goal_features(self.task, observation) for observation in episode.observations])
        pairs = zip(episode.observations[1:], episode.rewards.tolist(), strict=True)
        rewards = np.array([self._shaping(observation, reward) for observation, reward in pairs], np.float32)
        return dataclasses.replace(episode, observations=seen, rewards=rewards)


def _make_model(env: _TrainingEnv, config: BehaviorTrainingConfig, *, done: int) -> Any:
    """The model before its first step. done: steps that an earlier call made; a continued run draws other exploration."""
    started = 0 if config.start is None else config.start_episodes * env.task.max_episode_steps
    return make_learner(
        config.algorithm,
        env,
        steps=config.steps + started,
        learning_starts=config.learning_starts,
        seed=config.seed + done,
        warm=config.start is not None,
    )


def _start(model: Any, env: _TrainingEnv, level: str, config: BehaviorTrainingConfig) -> None:
    """Lets the policy of `level` begin; its episodes have other seeds than those of the measurements."""
    policy = behavior_policy(env.task, level, env=env.env)
    first = config.seed + config.evaluation_episodes
    seeds = range(first, first + config.start_episodes)
    episodes = (env.to_training(rollout(env.env, env.task, policy, seed)) for seed in seeds)
    trained = policy.policy if isinstance(policy, NoisyPolicy) else policy
    layers = trained.layers if isinstance(trained, MLPPolicy) and takes_layers(config.algorithm) else None
    start_from(model, episodes, layers)


def _measure(task: TaskSpec, model: Any, config: BehaviorTrainingConfig) -> Snapshot:
    """A snapshot of the actor, measured with the true reward; every measurement of a run uses the same episodes."""
    layers = actor_layers(model)
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
