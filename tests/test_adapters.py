"""The adapters, with the real libraries: the same episodes give the same returns as our own evaluation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import metaworld.evaluation
import numpy as np
import pytest
from contracts import observations, random_bank, random_datasets
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import m3dt_agent  # noqa: F401  (registers the ids)
from m3dt_agent.adapters import EpisodeStarts, MetaWorldPolicy, SB3Policy, metaworld_envs, run_episodes
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.envs.vector import MixedTaskVectorEnv
from m3dt_agent.envs.wrappers import SeededResets
from m3dt_agent.errors import ConfigError, InvalidValueError, ShapeError, StageError, UnknownTaskError
from m3dt_agent.evaluation import evaluate
from m3dt_agent.tasks import get

NAMES = ("reach", "button-press-topdown", "cheetah-vel-25", "walker-run")
MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    folder = tmp_path_factory.mktemp("adapters")
    return random_bank(folder / "bank", random_datasets(folder / "data", NAMES), ModelConfig.preset("tiny"))


@pytest.fixture
def agent(bank: ExpertBank) -> M3DTAgent:
    return M3DTAgent.from_pretrained(bank.path)


def our_returns(agent: M3DTAgent, name: str, **config: Any) -> list[float]:
    rows = evaluate(agent, [name], EvalConfig(workers=0, rtg_mode="constant", **config))
    return [row.episode_return for row in rows]


@pytest.mark.parametrize(
    "name", ["cheetah-vel-25", *(pytest.param(one, marks=pytest.mark.slow) for one in ("walker-run", "reach"))]
)
def test_stable_baselines3_gives_our_returns(agent: M3DTAgent, name: str) -> None:
    """With as many environments as episodes, environment i seeded with seed + i."""
    episodes = 2
    env = DummyVecEnv([lambda: Monitor(gym.make(get(name).env_id))] * episodes)
    env.seed(11)
    returns, lengths = evaluate_policy(SB3Policy(agent, name), env, n_eval_episodes=episodes, return_episode_rewards=True)
    env.close()
    expected = our_returns(agent, name, episodes=episodes, slots=episodes, seed=11)
    np.testing.assert_allclose(returns, expected, rtol=1e-4, atol=1e-4)
    assert lengths == [get(name).max_episode_steps] * episodes


def test_stable_baselines3_with_one_environment_and_seeded_resets(agent: M3DTAgent) -> None:
    env = SeededResets(gym.make("M3DT/cheetah-vel-25-v0"), first=20)
    model = SB3Policy(agent, "cheetah-vel-25")
    returns, _ = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)
    env.close()
    expected = our_returns(agent, "cheetah-vel-25", episodes=2, slots=1, seed=20)
    np.testing.assert_allclose(returns, expected, rtol=1e-4, atol=1e-4)


def test_predict_keeps_its_place_by_the_state(agent: M3DTAgent) -> None:
    task = get("walker-run")
    model = SB3Policy(agent, task)
    obs = observations(task, 3, 0)
    first, state = model.predict(obs[0])
    second, state = model.predict(obs[1], state, np.array(False))
    assert first.shape == (6,)
    agent.reset(task=task, rtg_mode="constant")
    np.testing.assert_array_equal([agent.act(obs[0]), agent.act(obs[1])], [first, second])
    again, _ = model.predict(obs[0], state=None)
    np.testing.assert_array_equal(again, first)
    with pytest.raises(StageError, match="state of its last call"):
        model.predict(obs[2], state)
    with pytest.raises(ShapeError, match="dict"):
        model.predict({"observation": obs[0]})
    unseen = SB3Policy(agent, prompt=agent.prompts["walker-run"][0], statistics=agent.statistics["walker-run"])
    np.testing.assert_array_equal(unseen.predict(obs[0])[0], first)


@pytest.mark.slow
def test_metaworlds_evaluation_gives_our_returns(agent: M3DTAgent) -> None:
    names, episodes = ["reach", "button-press-topdown"], 2
    envs = metaworld_envs(names, seed=30)
    success, mean, per_task, returns = metaworld.evaluation.evaluation(
        MetaWorldPolicy.for_envs(agent, envs), envs, num_episodes=episodes
    )
    assert envs.get_attr("terminate_on_success") == (False, False)
    envs.close()
    rows = evaluate(agent, names, EvalConfig(episodes, 30, slots=2, workers=0, stop_on_success=True, rtg_mode="constant"))
    for name in names:
        ours = [row for row in rows if row.task == name]
        np.testing.assert_allclose(returns[f"{name}-v3"], [row.episode_return for row in ours], rtol=1e-4, atol=1e-4)
        assert per_task[f"{name}-v3"] == np.mean([bool(row.success) for row in ours])
    assert mean == pytest.approx(np.mean([row.episode_return for row in rows]), rel=1e-4)
    assert success == np.mean([bool(row.success) for row in rows])


class ScriptedAgent:
    """Meta-World's scripted policies behind Meta-World's own agent protocol: episodes that do end in success."""

    def __init__(self, names: list[str]) -> None:
        self.policies = [behavior_policy(get(name)) for name in names]

    def reset(self, env_mask: Any) -> None:
        for policy in np.array(self.policies, object)[env_mask]:
            policy.reset(0)

    def eval_action(self, obs: Any) -> Any:
        return np.stack([policy(o.astype(np.float32)) for policy, o in zip(self.policies, obs, strict=True)])


def test_our_metaworld_environments_end_where_our_evaluation_does() -> None:
    names = ["reach", "button-press-topdown"]
    envs = metaworld_envs(names, seed=30)
    success, _, _, returns = metaworld.evaluation.evaluation(ScriptedAgent(names), envs, num_episodes=2)
    envs.close()
    rows = evaluate("expert", names, EvalConfig(2, 30, slots=2, workers=0, stop_on_success=True))
    assert success == 1.0
    assert all(row.length < 200 for row in rows)
    for name in names:
        expected = [row.episode_return for row in rows if row.task == name]
        np.testing.assert_allclose(returns[f"{name}-v3"], expected, rtol=1e-12)


def test_metaworlds_own_vector_environment_runs_the_agent(agent: M3DTAgent) -> None:
    envs = gym.make_vec("Meta-World/custom-mt-envs", vector_strategy="sync", envs_list=["reach-v3"], seed=0)
    model = MetaWorldPolicy.for_envs(agent, envs)
    _, mean, _, returns = metaworld.evaluation.evaluation(model, envs, num_episodes=1)
    envs.close()
    assert len(returns["reach-v3"]) == 1
    assert np.isfinite(mean)


def test_metaworld_policy_refuses_other_tasks(agent: M3DTAgent) -> None:
    with pytest.raises(ConfigError, match="walker-run"):
        MetaWorldPolicy(agent, ["reach", "walker-run"])
    with pytest.raises(UnknownTaskError):
        metaworld_envs(["no-such-task"])


def short_env(first_seed: int, steps: int) -> gym.Env[Any, Any]:
    """cheetah-vel with few steps, the k-th unseeded reset seeded."""
    env = gym.make("M3DT/cheetah-vel-25-v0", max_episode_steps=steps)
    return SeededResets(env, first_seed)


def returns_one_by_one(agent: M3DTAgent, first_seed: int, steps: int, episodes: int) -> list[float]:
    env, returns = short_env(first_seed, steps), []
    for _ in range(episodes):
        obs, _ = env.reset()
        agent.reset(task="cheetah-vel-25")
        total, reward, done = 0.0, None, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs, reward=reward))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_every_autoreset_mode_gives_the_same_episodes(agent: M3DTAgent, mode: AutoresetMode, kind: Any) -> None:
    """Episodes of different lengths side by side, so that slots reset at different times."""
    slots = [(0, 12), (50, 7), (90, 9)]
    envs = kind([lambda slot=slot: short_env(*slot) for slot in slots], autoreset_mode=mode)
    agent.reset(task="cheetah-vel-25")
    returns = run_episodes(agent, envs, episodes=3)
    envs.close()
    expected = [returns_one_by_one(agent, seed, steps, 3) for seed, steps in slots]
    np.testing.assert_allclose(returns, expected, rtol=1e-4, atol=1e-4)


def test_our_own_vector_environment_with_several_tasks(agent: M3DTAgent) -> None:
    names = ["cheetah-vel-25", "walker-run"]
    envs = MixedTaskVectorEnv([get(name) for name in names], workers=0)
    agent.reset(task=names)
    returns = run_episodes(agent, envs, episodes=1, seed=3)
    envs.close()
    assert [len(of_slot) for of_slot in returns] == [1, 1]
    rows = [evaluate(agent, [name], EvalConfig(1, 3 + i, slots=1, workers=0))[0] for i, name in enumerate(names)]
    np.testing.assert_allclose([of_slot[0] for of_slot in returns], [row.episode_return for row in rows], rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_episode_starts_are_where_gymnasium_resets(mode: AutoresetMode) -> None:
    """Against the seeds the environments were reset with: an observation opens an episode exactly when it is a reset's."""
    envs = SyncVectorEnv([lambda slot=slot: short_env(*slot) for slot in ((0, 3), (50, 5))], autoreset_mode=mode)
    resets: list[list[Any]] = [[], []]
    for i, env in enumerate(envs.envs):
        inner = env.reset
        env.reset = lambda inner=inner, i=i, **kw: resets[i].append(out := inner(**kw)) or out  # type: ignore[method-assign]
    tracker = EpisodeStarts(envs)
    obs, _ = envs.reset()
    starts, seen = tracker.after_reset(), [0, 0]
    for _ in range(25):
        for i in range(2):
            assert starts[i] == (len(resets[i]) > seen[i])
            if starts[i]:
                np.testing.assert_array_equal(obs[i], resets[i][-1][0])
            seen[i] = len(resets[i])
        obs, _, terminated, truncated, _ = envs.step(np.zeros((2, 6), np.float32))
        starts = tracker.after_step(terminated, truncated)
        if mode is AutoresetMode.DISABLED and (truncated | terminated).any():
            obs, _ = envs.reset(options={"reset_mask": terminated | truncated})
            starts = tracker.after_reset(terminated | truncated)
    assert min(seen) >= 4
    envs.close()


def test_a_vector_environment_must_say_its_mode(agent: M3DTAgent) -> None:
    envs = SyncVectorEnv([lambda: short_env(0, 3)])
    envs.metadata.pop("autoreset_mode")
    with pytest.raises(ConfigError, match="NEXT_STEP"):
        EpisodeStarts(envs)
    envs.close()


class OneStep(gym.Env[Any, Any]):
    """Gives one observation and one reward again and again; an episode is three steps."""

    action_space = gym.spaces.Box(-1, 1, (6,))
    observation_space = gym.spaces.Box(-np.inf, np.inf, (24,), np.float64)

    def __init__(self, obs: float = 0.0, reward: float = 0.0) -> None:
        self.obs, self.reward = np.full(24, obs), reward

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return self.obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        assert np.isfinite(action).all()
        return self.obs, self.reward, False, self.steps == 3, {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"obs": np.nan}, "observation of slot 1, dimension 0 is nan"),
        ({"obs": 1e300}, "observation of slot 1, dimension 0 is inf"),
        ({"reward": 1e300}, "return-to-go of slot 1 is -inf"),
        ({"reward": np.inf}, "reward of slot 1 is inf"),
    ],
)
def test_an_environment_that_gives_no_finite_numbers_gets_no_action(
    agent: M3DTAgent, values: dict[str, float], message: str
) -> None:
    envs = SyncVectorEnv([OneStep, lambda: OneStep(**values)])
    agent.reset(task="walker-run")
    with pytest.raises(InvalidValueError, match=message):
        run_episodes(agent, envs, episodes=1)
    if "obs" in values:
        with pytest.raises(InvalidValueError, match=message):
            SB3Policy(agent, "walker-run").predict(np.stack([OneStep().obs, OneStep(**values).obs]))


@pytest.mark.parametrize("episodes", [0, -1, 1.5, "2", True, None])
def test_episodes_are_counted_in_whole_numbers(agent: M3DTAgent, episodes: Any) -> None:
    agent.reset(task="walker-run")
    with pytest.raises(ConfigError, match="episodes must be an integer >= 1; got"):
        run_episodes(agent, SyncVectorEnv([OneStep]), episodes=episodes)
    assert len(run_episodes(agent, SyncVectorEnv([OneStep]), episodes=np.int64(2))[0]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [(), ("x",), (5,), (None,), (np.array(1), np.array(1)), (np.array([1, 1]),)])
def test_a_state_that_is_not_the_last_calls_is_refused(agent: M3DTAgent, state: Any) -> None:
    policy = SB3Policy(agent, "walker-run")
    policy.predict(OneStep().obs)
    with pytest.raises(StageError, match="predict continues only from the state of its last call"):
        policy.predict(OneStep().obs, state)
