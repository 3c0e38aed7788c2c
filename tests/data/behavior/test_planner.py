"""The planner: it looks ahead without touching the episode, reaches what its docstring says, and says where it cannot act."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.behavior.planner import PLANS, PlannerPolicy
from m3dt_agent.data.shards import episode_seed, rollout
from m3dt_agent.errors import ConfigError


@pytest.fixture(params=PLANS)
def task_env(request):
    task = tasks.get(request.param)
    env = gym.make(task.env_id)
    yield task, env
    env.close()


def distance(env, *names):
    data = env.unwrapped.physics.named.data
    ends = [data.site_xpos[name] if name in data.site_xpos.axes.row.names else data.geom_xpos[name] for name in names]
    return np.linalg.norm(ends[0] - ends[1])


def test_looking_ahead_foresees_what_the_environment_does_and_leaves_it_alone(task_env):
    task, env = task_env
    plan = PLANS[task.name]
    tip = "fingertip" if "finger" in task.name else plan.tip  # the spinner's tip rests until it is hit
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 8, task.act_dim))
    env.reset(seed=4)
    for action in actions[2][:3]:
        env.step(action.astype(np.float32))  # from the middle of an episode
    foreseen = env.unwrapped.look_ahead(actions, tip, plan.target)
    env.unwrapped.look_ahead(-actions, tip, plan.target)
    happened = []
    for action in actions[1]:
        env.step(action.astype(np.float32))
        happened.append(distance(env, tip, plan.target))
    assert foreseen.shape == (3, 8)
    np.testing.assert_allclose(foreseen[1], happened, atol=1e-5)
    assert not np.allclose(foreseen[0], foreseen[1])


def test_an_episode_depends_on_its_seed_alone(task_env):
    task, env = task_env

    def first_actions(seed, policy):
        observation, _ = env.reset(seed=seed)
        policy.reset(seed)
        actions = []
        for _ in range(7):
            actions.append(policy(observation))
            observation, *_ = env.step(actions[-1])
        return np.stack(actions)

    policy = behavior_policy(task, "planner", env=env)
    once, other, again = (first_actions(seed, policy) for seed in (3, 4, 3))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, first_actions(3, PlannerPolicy(task, env)))
    assert not np.array_equal(once, other)


def test_it_acts_in_one_environment_and_in_few_tasks():
    with pytest.raises(ConfigError, match="needs the environment it acts in"):
        behavior_policy(tasks.get("fish-swim"), "planner")
    with pytest.raises(ConfigError, match="no behavior policy 'planner'"):
        behavior_policy(tasks.get("walker-run"), "planner")
    with pytest.raises(ConfigError, match="'walker-run' has no planner; those with one are finger-turn-easy"):
        PlannerPolicy(tasks.get("walker-run"), None)


def test_it_turns_the_finger_where_the_trained_policy_does_not():
    task = tasks.get("finger-turn-hard")
    env = gym.make(task.env_id)
    assert rollout(env, task, behavior_policy(task, "planner", env=env), episode_seed(0, task, 0)).episode_return > 800
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("finger-turn-easy", 600), ("finger-turn-hard", 600), ("fish-swim", 450), ("acrobot-swingup", 100)]
)
def test_it_reaches_what_its_docstring_says(name, least):
    """Twenty episodes, since returns are near 0 or near their best: of 80 recorded ones the mean of five is under `least` in
    up to 11% of draws, that of twenty in 0.4%."""
    task = tasks.get(name)
    env = gym.make(task.env_id)
    policy = behavior_policy(task, "planner", env=env)
    returns = [rollout(env, task, policy, episode_seed(7, task, i)).episode_return for i in range(20)]
    env.close()
    assert np.mean(returns) > least
