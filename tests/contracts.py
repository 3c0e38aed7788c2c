"""The agent contract: what everyone may rely on, as one suite that every agent must pass.

Subclass `AgentContract` as `Test...` and give it an `agent` fixture: an agent of at least two tasks of different widths, whose
actions depend on observations, rewards and time. `random_bank` makes a bank folder for such an agent: real datasets of random
episodes, their statistics and prompts, and random weights of a few times the usual size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.expert_bank import expert_file
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, InvalidValueError, M3DTError, ShapeError, UnknownTaskError
from m3dt_agent.model import M3DT
from m3dt_agent.tasks import MAX_ACT_DIM, MAX_OBS_DIM, TaskSpec, get

STEPS = 9
TOLERANCE = 1e-5


def random_datasets(root: Path, names: Sequence[str], episodes: int = 4, length: int = 12) -> TaskDatasets:
    """Minari datasets of random episodes, really written and packed."""
    for name in names:
        task = get(name)
        write_dataset(root, task, "random", [_random_episode(task, length, seed) for seed in range(episodes)], metadata={})
    return TaskDatasets.open(root, names)


def _random_episode(task: TaskSpec, length: int, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    ends = np.arange(length) == length - 1
    return Episode(
        observations=rng.normal(size=(length + 1, task.obs_dim)),
        actions=rng.uniform(-1, 1, (length, task.act_dim)),
        rewards=rng.normal(size=length) * 10,
        terminations=np.zeros(length, bool),
        truncations=ends,
        success=ends if task.domain == "metaworld" else None,
        seed=seed,
    )


def random_bank(path: Path, data: TaskDatasets, config: ModelConfig, *, experts: bool = True, gain: float = 3.0) -> ExpertBank:
    """A bank with every stage done (or the backbone alone), all weights random."""
    statistics, prompts = compute_statistics(data), make_prompts(data, config.prompt_length)
    bank = ExpertBank.create(path, config, data.tasks, statistics, prompts, data.config)
    bank.commit(random_files(config, experts=experts, gain=gain))
    return bank


def random_files(config: ModelConfig, *, experts: bool = True, gain: float = 3.0) -> dict[str, Any]:
    """The tensor files of a bank with every stage done (or the backbone alone), all weights random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = M3DT(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=gain * 0.02)
            for name, parameter in model.expert_tensors().items():
                if "w_" in name:
                    parameter.normal_(std=0.2)
    files: dict[str, Any] = {"backbone.safetensors": model.backbone_tensors()}
    if experts:
        files |= {expert_file(e): model.expert_slice(e) for e in range(config.n_experts)}
        files |= {"router.safetensors": model.router_tensors()}
    return files


def observations(task: TaskSpec, steps: int, seed: int) -> Any:
    """(steps, obs_dim) float32 observations a task could give."""
    return np.random.default_rng(seed).normal(size=(steps, task.obs_dim)).astype(np.float32)


def padded(rows: list[Any], width: int = MAX_OBS_DIM) -> Any:
    """(N, width) from N rows of different widths."""
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


def play_alone(agent: M3DTAgent, task: TaskSpec, obs: Any, rewards: Any) -> Any:
    """(steps, act_dim): one episode of one slot; rewards[t] follows action t."""
    agent.reset(task=task.name)
    return np.stack([agent.act(o, reward=rewards[t - 1] if t else None) for t, o in enumerate(obs)])


class AgentContract:
    """Inherit from it, and define the fixture `agent`."""

    def test_one_slot_unbatched(self, agent: M3DTAgent) -> None:
        for task in agent.tasks:
            agent.reset(task=task.name)
            for obs in observations(task, STEPS, 0):
                action = agent.act(obs, reward=1.0)
                assert action.shape == (task.act_dim,)
                assert action.dtype == np.float32
                assert np.abs(action).max() <= 1.0

    def test_several_slots_of_one_task(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        agent.reset(task=task)
        for obs in observations(task, STEPS * 3, 0).reshape(STEPS, 3, -1):
            assert agent.act(obs, reward=np.ones(3)).shape == (3, task.act_dim)

    def test_a_list_of_tasks_is_padded_with_exact_zeros(self, agent: M3DTAgent) -> None:
        tasks = [*agent.tasks, agent.tasks[0]]
        agent.reset(task=[task.name for task in tasks])
        for step in range(STEPS):
            actions = agent.act(padded([observations(task, 1, step)[0] for task in tasks]))
            assert actions.shape == (len(tasks), MAX_ACT_DIM)
            for action, task in zip(actions, tasks, strict=True):
                assert (action[task.act_dim :] == 0.0).all()
                assert (action[: task.act_dim] != 0.0).all()

    def test_what_stands_in_the_padding_does_not_matter(self, agent: M3DTAgent) -> None:
        task = min(agent.tasks, key=lambda task: task.obs_dim)
        assert task.obs_dim < MAX_OBS_DIM
        clean = padded([observations(task, 1, 0)[0]])
        dirty = clean.copy()
        dirty[:, task.obs_dim :] = np.nan
        actions = []
        for obs in (clean, dirty):
            agent.reset(task=[task.name])
            actions.append(agent.act(obs))
        np.testing.assert_array_equal(*actions)

    def test_batched_equals_one_by_one(self, agent: M3DTAgent) -> None:
        tasks = [*agent.tasks, agent.tasks[0]]
        rng = np.random.default_rng(0)
        obs = [observations(task, STEPS, seed) for seed, task in enumerate(tasks)]
        rewards = rng.normal(size=(STEPS, len(tasks))) * 20
        alone = [play_alone(agent, task, o, rewards[:, i]) for i, (task, o) in enumerate(zip(tasks, obs, strict=True))]
        agent.reset(task=tasks)
        for t in range(STEPS):
            together = agent.act(padded([o[t] for o in obs]), reward=rewards[t - 1] if t else None)
            expected = padded([actions[t] for actions in alone], MAX_ACT_DIM)
            np.testing.assert_allclose(together, expected, rtol=0, atol=TOLERANCE)

    def test_reset_forgets(self, agent: M3DTAgent) -> None:
        first, second = agent.tasks[:2]
        obs, rewards = observations(first, STEPS, 1), np.ones(STEPS)
        fresh = play_alone(agent, first, obs, rewards)
        play_alone(agent, second, observations(second, STEPS, 2), rewards)
        np.testing.assert_array_equal(play_alone(agent, first, obs, rewards), fresh)

    def test_reset_mask_opens_an_episode_and_ignores_that_reward(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        obs = observations(task, STEPS, 3)
        agent.reset(task=task.name)
        expected = [agent.act(np.stack([o, o]), reward=np.full(2, 5.0)) for o in obs]
        agent.reset(task=task.name)
        for o in observations(task, 4, 4):
            agent.act(np.stack([o, o]), reward=np.ones(2))
        for t, o in enumerate(obs):
            reward, mask = np.array([np.nan if t == 0 else 5.0, 5.0]), np.array([t == 0, False])
            actions = agent.act(np.stack([o, o]), reward=reward, reset_mask=mask)
            np.testing.assert_allclose(actions[0], expected[t][0], rtol=0, atol=TOLERANCE)
            if t < 2:  # before the context window has forgotten what came before
                assert np.abs(actions[1] - expected[t][1]).max() > TOLERANCE

    def test_inactive_slots_stand_still(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        obs, rewards = observations(task, STEPS, 5), np.arange(STEPS, dtype=float)
        expected = play_alone(agent, task, obs, rewards)
        agent.reset(task=task.name)
        junk = np.full(task.obs_dim, np.nan, np.float32)
        for t, o in enumerate(obs):
            reward = np.array([rewards[t - 1], rewards[t - 1]]) if t else None
            actions = agent.act(np.stack([o, o]), reward=reward, active=np.array([True, t % 2 == 0]))
            np.testing.assert_allclose(actions[0], expected[t], rtol=0, atol=TOLERANCE)
            pause = agent.act(np.stack([junk, junk]), reward=np.full(2, np.nan), active=np.zeros(2, bool))
            assert (pause == 0.0).all()

    def test_rewards_lower_the_return_to_go_unless_it_is_constant(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        obs = observations(task, 3, 6)
        actions = {}
        for mode, reward in (("rewards", 50.0), ("rewards", None), ("constant", 50.0), ("constant", None)):
            agent.reset(task=task.name, rtg_mode=mode)  # type: ignore[arg-type]
            actions[mode, reward] = np.stack([agent.act(o, reward=reward) for o in obs])
        np.testing.assert_array_equal(actions["constant", 50.0], actions["constant", None])
        np.testing.assert_array_equal(actions["rewards", None], actions["constant", None])
        assert np.abs(actions["rewards", 50.0] - actions["rewards", None])[1:].max() > TOLERANCE
        np.testing.assert_array_equal(actions["rewards", 50.0][0], actions["rewards", None][0])

    def test_target_return_can_be_chosen(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        obs = observations(task, 1, 7)[0]
        own = agent.statistics[task.name]
        actions = []
        for target in (None, own.target_return, own.target_return + 10 * own.return_scale):
            agent.reset(task=task.name, target_return=target)
            actions.append(agent.act(obs))
        np.testing.assert_array_equal(actions[0], actions[1])
        assert np.abs(actions[2] - actions[0]).max() > TOLERANCE

    def test_an_unseen_task_comes_with_prompt_and_statistics(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        obs = observations(task, STEPS, 8)
        expected = play_alone(agent, task, obs, np.ones(STEPS))
        agent.reset(prompt=agent.prompts[task.name][0], statistics=agent.statistics[task.name])
        unseen = [agent.act(o, reward=1.0 if t else None) for t, o in enumerate(obs)]
        np.testing.assert_array_equal(np.stack(unseen), expected)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_an_observation_that_is_not_finite_is_named_and_changes_nothing(self, agent: M3DTAgent, bad: float) -> None:
        task = agent.tasks[0]
        obs = observations(task, 4, 9)
        expected = play_alone(agent, task, obs, np.ones(4))
        agent.reset(task=task.name)
        for t, o in enumerate(obs):
            broken = np.stack([o, o])
            broken[1, 2] = bad
            with pytest.raises(InvalidValueError, match=r"slot 1, dimension 2"):
                agent.act(broken, reward=np.ones(2))
            actions = agent.act(np.stack([o, o]), reward=np.ones(2) if t else None)
            np.testing.assert_allclose(actions[1], expected[t], rtol=0, atol=TOLERANCE)

    def test_shapes_that_do_not_fit_are_refused_with_the_valid_ones(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        width = task.obs_dim
        agent.reset(task=task.name)
        for shape in ((width + 1,), (), (2, width + 1), (1, 2, width), (0, width)):
            with pytest.raises(ShapeError, match=rf"\({width},\) or \(N, {width}\)"):
                agent.act(np.zeros(shape, np.float32))
        agent.act(np.zeros((2, width), np.float32))
        for shape in ((width,), (3, width)):
            with pytest.raises(ShapeError, match=rf"\(2, {width}\)"):
                agent.act(np.zeros(shape, np.float32))
        with pytest.raises(ShapeError, match=r"reward must have shape \(2,\)"):
            agent.act(np.zeros((2, width), np.float32), reward=1.0)
        with pytest.raises(ShapeError, match=r"reset_mask must have shape \(2,\)"):
            agent.act(np.zeros((2, width), np.float32), reset_mask=np.zeros(3, bool))
        with pytest.raises(InvalidValueError, match="reset_mask must be boolean"):
            agent.act(np.zeros((2, width), np.float32), reset_mask=np.zeros(2))
        with pytest.raises(InvalidValueError, match="reward of slot 1 is nan"):
            agent.act(np.zeros((2, width), np.float32), reward=np.array([0.0, np.nan]))
        agent.reset(task=[task.name, task.name])
        for shape in ((2, width + 50), (MAX_OBS_DIM,), (3, MAX_OBS_DIM)):
            with pytest.raises(ShapeError, match=rf"\(2, {MAX_OBS_DIM}\)"):
                agent.act(np.zeros(shape, np.float32))

    def test_what_reset_refuses(self, agent: M3DTAgent) -> None:
        task = agent.tasks[0]
        prompt, statistics = agent.prompts[task.name][0], agent.statistics[task.name]
        with pytest.raises(UnknownTaskError, match=f"did you mean {task.name}"):
            agent.reset(task=task.name + "x")
        bad: list[dict[str, Any]] = [
            {},
            {"task": []},
            {"prompt": prompt},
            {"statistics": statistics},
            {"task": task.name, "prompt": prompt, "statistics": statistics},
            {"task": task.name, "rtg_mode": "fixed"},
            {"task": task.name, "target_return": np.nan},
        ]
        for arguments in bad:
            with pytest.raises((ConfigError, InvalidValueError)):
                agent.reset(**arguments)
        wide = observations(task, 2, 0)
        with pytest.raises(M3DTError):
            agent.reset(
                prompt=type(prompt)(wide[:, :-1], prompt.actions[:2], prompt.returns_to_go[:2], prompt.timesteps[:2]),
                statistics=statistics,
            )
