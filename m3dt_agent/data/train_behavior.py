"""Training a behavior policy for one task with soft actor-critic (sbx, extra `[behavior]`), and exporting it in our format.

    folder/checkpoint-000010000/     the newest checkpoint, renamed into place whole; older ones are removed after it
        state.safetensors            SAC's networks, optimizers and keys leaf by leaf, and the filled part of the replay buffer
        snapshots.safetensors        <steps>/{w0,b0,w1,b1,w2,b2}: the actor at every checkpoint so far
        progress.json                task, seed, steps, and every snapshot's measured return
    folder/policies.safetensors      <task>/<level>/{w0,…} in float16, as in `assets/behavior_policies.safetensors`
    folder/returns.json              their measured returns, as in `assets/behavior_returns.json`

The recipe learned the 110 policies that ship with this package: two hidden layers of 128, batches of 128, 32 updates every 32
steps, learning rate 7e-4 (cartpole-balance reaches 999 in 30,000 steps). Sparse tasks needed a shaped training reward
(`SHAPED_REWARDS`); evaluation always uses the true one. A goal task is trained on its own goal, in the goal's frame
(`goal_features`).

The snapshots become levels by how far they got from the untrained policy's return (0) to the best one's (1): expert is the
best, medium the nearest to 0.6 and novice the nearest to 0.25, where one came near enough.

No pickle: a checkpoint holds arrays and JSON only. A resumed run begins a new episode and redraws its exploration, so it
continues the training but does not repeat an uninterrupted run bit by bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import safetensors.numpy
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ..disk import disk_space_errors, publish, scratch_folder, write_file
from ..errors import ConfigError, MissingDependencyError
from ..tasks import TaskSpec
from .behavior import MeasuredReturn
from .behavior_policies import Array, MLPPolicy, goal_features
from .shards import rollout

RewardShaping: TypeAlias = Callable[[Array, float], float]
"""(observation after the step (obs_dim,), true reward) → the reward to train on."""

Layers: TypeAlias = tuple[Array, ...]

LAYER_NAMES = ("w0", "b0", "w1", "b1", "w2", "b2")
_HIDDEN = 128
_BUFFER_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_LEVEL_TARGETS = {"novice": (0.25, 0.1), "medium": (0.6, 0.15)}  # level → (share of the way to the best, how far off at most)


@dataclass(frozen=True, slots=True)
class BehaviorTrainingConfig:
    """How long to train, and how often to look.

    steps: environment steps in all; resuming with more continues. checkpoint_every: steps between checkpoints, each of which
    measures the policy over `evaluation_episodes` episodes with the true reward. learning_starts: uniformly random first steps.
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The actor after `steps` environment steps, and what it reached."""

    steps: int
    layers: Layers
    measured: MeasuredReturn


def _near(scale: float, *entries: int) -> RewardShaping:
    """½·reward + ½·exp(-scale·distance), the distance being the norm of these entries of the observation."""
    return lambda observation, reward: 0.5 * reward + 0.5 * float(np.exp(-scale * np.linalg.norm(observation[list(entries)])))


def _high(entry: int, low: float, high: float) -> RewardShaping:
    """½·reward + ½·height, the height being an entry of the observation scaled from [low, high] to [0, 1]."""
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
"""Training rewards of the tasks that a plain run does not learn."""


def train_behavior(
    task: TaskSpec,
    folder: str | Path,
    config: BehaviorTrainingConfig,
    *,
    shaping: RewardShaping | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> dict[str, MeasuredReturn]:
    """Trains a policy for `task` in `folder`, continuing from its newest checkpoint; returns the exported levels' returns.

    `shaping` replaces the task's entry of `SHAPED_REWARDS`. The exported `folder/policies.safetensors` is what
    `behavior_policy(task, level, weights=…)` reads.

    Raises:
        ConfigError: the folder holds a run of another task or seed.
        MissingDependencyError: sbx or the task's simulator is not installed.
        DiskSpaceError: the disk is full; the checkpoint before stays.
    """
    folder = Path(folder)
    shaping = shaping or SHAPED_REWARDS.get(task.name) or (lambda observation, reward: reward)
    checkpoint = newest_checkpoint(folder)
    snapshots = [] if checkpoint is None else _read_snapshots(checkpoint, task, config)
    done = snapshots[-1].steps if snapshots else 0
    env = gym.make(task.env_id, disable_env_checker=True)
    model = _make_model(_TrainingEnv(env, task, shaping), config, seed=config.seed + done)
    try:
        if checkpoint is None:
            snapshots.append(_measure(task, model, config))
        else:
            _load_state(model, safetensors.numpy.load_file(checkpoint / "state.safetensors"), done)
        while model.num_timesteps < config.steps:
            steps = min(config.checkpoint_every, config.steps - model.num_timesteps)
            model.learn(steps, reset_num_timesteps=False)
            snapshots.append(_measure(task, model, config))
            _save_checkpoint(folder, task, config, model, snapshots)
            if on_snapshot is not None:
                on_snapshot(snapshots[-1])
    finally:
        env.close()
    return export(task, snapshots, folder)


def export(task: TaskSpec, snapshots: list[Snapshot], folder: Path) -> dict[str, MeasuredReturn]:
    """Writes `policies.safetensors` and `returns.json` with the snapshots chosen as levels; returns level → measured return."""
    chosen = choose_levels(snapshots)
    tensors = {
        f"{task.name}/{level}/{name}": layer.astype(np.float16)
        for level, snapshot in chosen.items()
        for name, layer in zip(LAYER_NAMES, snapshot.layers, strict=True)
    }
    returns = {level: snapshot.measured for level, snapshot in chosen.items()}
    table = {task.name: {level: asdict(measured) for level, measured in returns.items()}}
    with disk_space_errors(folder):
        write_file(folder / "policies.safetensors", safetensors.numpy.save(tensors))
        write_file(folder / "returns.json", json.dumps(table, indent=1).encode())
    return returns


def choose_levels(snapshots: list[Snapshot]) -> dict[str, Snapshot]:
    """Level → snapshot, worst first; "expert" is always there, the others where training passed near them."""
    low = snapshots[0].measured.mean
    best = max(snapshots, key=lambda snapshot: snapshot.measured.mean)
    span = best.measured.mean - low
    chosen = {}
    for level, (target, tolerance) in _LEVEL_TARGETS.items():
        offs = [abs((snapshot.measured.mean - low) / span - target) if span > 0 else np.inf for snapshot in snapshots]
        if min(offs) <= tolerance:
            chosen[level] = snapshots[int(np.argmin(offs))]
    return chosen | {"expert": best}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, if there is one."""
    return max(folder.glob("checkpoint-*"), default=None)


class _TrainingEnv(gym.Wrapper[Array, Array, Array, Array]):
    """The task with the observation that its policy will see and the reward to train on."""

    def __init__(self, env: gym.Env[Array, Array], task: TaskSpec, shaping: RewardShaping) -> None:
        super().__init__(env)
        self._task = task
        self._shaping = shaping
        width = len(goal_features(task, np.zeros(task.obs_dim, np.float32)))
        self.observation_space = Box(-np.inf, np.inf, (width,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return goal_features(self._task, observation), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return goal_features(self._task, observation), self._shaping(observation, float(reward)), terminated, truncated, info


def _make_model(env: gym.Env[Array, Array], config: BehaviorTrainingConfig, seed: int) -> Any:
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
    """The deterministic actor's layers; sbx numbers the dense layers in order, the fourth is the log deviation."""
    dense = model.policy.actor_state.params["params"]
    return tuple(
        np.array(dense[f"Dense_{i}"][part], np.float32)  # kernels are (in, out)
        for i in range(3)
        for part in ("kernel", "bias")
    )


def _measure(task: TaskSpec, model: Any, config: BehaviorTrainingConfig) -> Snapshot:
    """The actor as it is now, measured with the true reward over the same episodes every time."""
    layers = _actor_layers(model)
    policy = MLPPolicy(task, layers)
    env = gym.make(task.env_id, disable_env_checker=True)
    try:
        episodes = [rollout(env, task, policy, config.seed + i) for i in range(config.evaluation_episodes)]
    finally:
        env.close()
    returns = [episode.episode_return for episode in episodes]
    scores = [
        task.normalized_score(episode.episode_return, None if episode.success is None else bool(episode.success.any()))
        for episode in episodes
    ]
    measured = MeasuredReturn(float(np.mean(returns)), float(np.std(returns)), float(np.mean(scores)))
    return Snapshot(int(model.num_timesteps), layers, measured)


def _save_checkpoint(
    folder: Path, task: TaskSpec, config: BehaviorTrainingConfig, model: Any, snapshots: list[Snapshot]
) -> None:
    progress = {
        "task": task.name,
        "seed": config.seed,
        "returns": {str(snapshot.steps): asdict(snapshot.measured) for snapshot in snapshots},
    }
    layers = {
        f"{snapshot.steps}/{name}": layer
        for snapshot in snapshots
        for name, layer in zip(LAYER_NAMES, snapshot.layers, strict=True)
    }
    target = folder / f"checkpoint-{snapshots[-1].steps:09d}"
    with disk_space_errors(target), scratch_folder(folder) as scratch:
        safetensors.numpy.save_file(_state(model), scratch / "state.safetensors")
        safetensors.numpy.save_file(layers, scratch / "snapshots.safetensors")
        (scratch / "progress.json").write_text(json.dumps(progress, indent=1))
        publish(scratch, target)
    for older in folder.glob("checkpoint-*"):
        if older != target:
            shutil.rmtree(older)


def _read_snapshots(checkpoint: Path, task: TaskSpec, config: BehaviorTrainingConfig) -> list[Snapshot]:
    progress = json.loads((checkpoint / "progress.json").read_text())
    if (progress["task"], progress["seed"]) != (task.name, config.seed):
        raise ConfigError(
            f"{checkpoint.parent} holds a run of {progress['task']!r} with seed {progress['seed']}; "
            f"asked for was {task.name!r} with seed {config.seed}"
        )
    tensors = safetensors.numpy.load_file(checkpoint / "snapshots.safetensors")
    return [
        Snapshot(int(steps), tuple(tensors[f"{steps}/{name}"] for name in LAYER_NAMES), MeasuredReturn(**measured))
        for steps, measured in progress["returns"].items()
    ]


def _learned(model: Any) -> Any:
    """Everything SAC learns, as one JAX tree."""
    policy = model.policy
    return policy.actor_state, policy.qf_state, model.ent_coef_state, model.key, policy.key


def _state(model: Any) -> dict[str, NDArray[Any]]:
    import jax

    tensors = {f"learned/{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree_util.tree_leaves(_learned(model)))}
    buffer = model.replay_buffer
    return tensors | {f"buffer/{name}": np.ascontiguousarray(getattr(buffer, name)[: buffer.pos]) for name in _BUFFER_FIELDS}


def _load_state(model: Any, tensors: Mapping[str, NDArray[Any]], steps: int) -> None:
    import jax

    structure = jax.tree_util.tree_structure(_learned(model))
    leaves = [jax.numpy.asarray(tensors[name]) for name in sorted(tensors) if name.startswith("learned/")]
    learned = jax.tree_util.tree_unflatten(structure, leaves)
    model.policy.actor_state, model.policy.qf_state, model.ent_coef_state, model.key, model.policy.key = learned
    buffer = model.replay_buffer
    buffer.pos = len(tensors["buffer/rewards"])
    for name in _BUFFER_FIELDS:
        getattr(buffer, name)[: buffer.pos] = tensors[f"buffer/{name}"]
    model.num_timesteps = steps
