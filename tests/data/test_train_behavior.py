"""Training behavior policies: shaping, choosing levels, and a short real run that is continued and used."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.behavior import MeasuredReturn, behavior_policy
from m3dt_agent.data.shards import rollout
from m3dt_agent.data.train_behavior import (
    SHAPED_REWARDS,
    BehaviorTrainingConfig,
    Snapshot,
    choose_levels,
    export,
    newest_checkpoint,
    train_behavior,
)
from m3dt_agent.errors import ConfigError


def snapshots_with(*means, task=None, seed=0):
    task = task or tasks.get("cartpole-balance")
    draw = np.random.default_rng(seed).normal
    widths = [(task.obs_dim, 128), (128,), (128, 128), (128,), (128, task.act_dim), (task.act_dim,)]
    layers = [tuple(draw(size=width).astype(np.float32) for width in widths) for _ in means]
    return [Snapshot(1000 * i, layers[i], MeasuredReturn(mean, 1.0, mean / 10)) for i, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((100, 210, 340, 700, 990, 1000), {"novice": 340, "medium": 700, "expert": 1000}),
        ((0, 900, 1000, 950), {"expert": 1000}),
        ((500, 400, 300), {"expert": 500}),
        ((10, 10), {"expert": 10}),
    ],
)
def test_levels_are_the_snapshots_nearest_to_their_share_of_the_way(means, expected):
    assert {level: snapshot.measured.mean for level, snapshot in choose_levels(snapshots_with(*means)).items()} == expected


def test_what_is_exported_is_what_acts(tmp_path):
    task = tasks.get("ant-dir-7")  # a policy of one goal goes before that of all goals
    snapshots = snapshots_with(0, 300, 500, task=task)
    returns = export(task, snapshots, tmp_path)
    assert json.loads((tmp_path / "returns.json").read_text())["ant-dir-7"]["expert"]["mean"] == returns["expert"].mean == 500
    policy = behavior_policy(task, "medium", weights=tmp_path / "policies.safetensors")
    observation = np.zeros(27, np.float32)
    x = np.zeros(27)
    w0, b0, w1, b1, w2, b2 = (layer.astype(np.float16).astype(np.float64) for layer in snapshots[1].layers)
    expected = np.tanh(np.maximum(np.maximum(x @ w0 + b0, 0) @ w1 + b1, 0) @ w2 + b2)
    np.testing.assert_allclose(policy(observation), expected, atol=1e-4)
    with pytest.raises(ConfigError, match=r"'ant-dir-8' has no behavior policy 'expert'"):
        behavior_policy(tasks.get("ant-dir-8"), weights=tmp_path / "policies.safetensors")


@pytest.mark.parametrize("name", sorted(SHAPED_REWARDS))
def test_shaped_rewards_keep_half_the_reward_and_grow_from_a_bad_state_to_a_good_one(name):
    task = tasks.get(name)
    good, bad = np.zeros(task.obs_dim, np.float32), np.zeros(task.obs_dim, np.float32)
    upright = {"pendulum-swingup": 0, "cartpole-swingup-sparse": 1}  # cosines, in these two tasks' observations
    if name in upright:
        good[upright[name]], bad[upright[name]] = 1, -1
    elif name.startswith("hopper"):
        bad[0] = -1  # the torso on the ground
    else:
        bad += 2  # far from the target
    shaped = SHAPED_REWARDS[name]
    assert shaped(good, 0.0) == pytest.approx(0.5)
    assert shaped(bad, 0.0) < 1e-2
    assert shaped(bad, 1.0) - shaped(bad, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["reacher-hard", "fish-swim", "pendulum-swingup", "hopper-hop"])
def test_shaped_rewards_read_the_entries_they_mean(name):
    """The observation against the simulator's own state, over a random episode."""
    task = tasks.get(name)
    env = gym.make(task.env_id)
    observation, _ = env.reset(seed=0)
    physics = env.unwrapped.physics
    env.action_space.seed(0)
    for _ in range(20):
        observation, *_ = env.step(env.action_space.sample())
    expected = {
        "reacher-hard": lambda: 0.5 * np.exp(-15 * physics.finger_to_target_dist()),
        "fish-swim": lambda: 0.5 * np.exp(-3 * np.linalg.norm(physics.mouth_to_target())),
        "pendulum-swingup": lambda: 0.25 * (1 + physics.pole_vertical()),
        "hopper-hop": lambda: 0.5 * np.clip(1 + physics.named.data.qpos["rootz"], 0, 1),
    }[name]()
    env.close()
    assert SHAPED_REWARDS[name](observation, 0.0) == pytest.approx(float(np.squeeze(expected)), abs=1e-5)


@pytest.mark.parametrize("values", [{"steps": 0}, {"seed": -1}, {"checkpoint_every": 0}])
def test_configs_that_cannot_work(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        BehaviorTrainingConfig(**values)


@pytest.mark.slow
def test_a_short_real_run_learns_continues_and_exports(tmp_path):
    pytest.importorskip("sbx")
    task = tasks.get("cartpole-balance")
    seen = []
    config = BehaviorTrainingConfig(steps=4_000, checkpoint_every=2_000, evaluation_episodes=2)
    train_behavior(task, tmp_path, config, on_snapshot=seen.append)
    first = newest_checkpoint(tmp_path)
    longer = BehaviorTrainingConfig(steps=8_000, checkpoint_every=2_000, evaluation_episodes=2)
    returns = train_behavior(task, tmp_path, longer, on_snapshot=seen.append)
    assert [snapshot.steps for snapshot in seen] == [2016, 4000, 6016, 8000]  # whole rounds of 32, none repeated
    assert not first.exists()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000008000"]
    assert returns["expert"].mean > 500  # untrained: about 350
    env = gym.make(task.env_id)
    policy = behavior_policy(task, weights=tmp_path / "policies.safetensors")
    reached = [rollout(env, task, policy, seed).episode_return for seed in range(2)]
    env.close()
    assert np.mean(reached) == pytest.approx(returns["expert"].mean, rel=0.05)  # float16
    with pytest.raises(ConfigError, match="holds a run of 'cartpole-balance'"):
        train_behavior(tasks.get("cartpole-swingup"), tmp_path, longer)
