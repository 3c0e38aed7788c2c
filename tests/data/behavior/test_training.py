"""Training behavior policies: shaping, and a short real run that is continued and used."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.behavior.training import (
    SHAPED_REWARDS,
    BehaviorTrainingConfig,
    newest_checkpoint,
    train_behavior,
)
from m3dt_agent.data.shards import rollout
from m3dt_agent.errors import ConfigError


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


def test_the_whole_target_is_as_good_as_its_edge():
    """The tip's distance is measured from the edge, and is negative inside."""
    observation = np.zeros(12, np.float32)
    edge = SHAPED_REWARDS["finger-turn-hard"](observation, 1.0)
    observation[11] = -0.03
    assert SHAPED_REWARDS["finger-turn-hard"](observation, 1.0) == edge == 1.0


@pytest.mark.parametrize("name", ["reacher-hard", "fish-swim", "pendulum-swingup", "hopper-hop", "finger-turn-hard"])
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
        "finger-turn-hard": lambda: 0.5 * np.exp(-10 * max(physics.dist_to_target(), 0.0)),
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
