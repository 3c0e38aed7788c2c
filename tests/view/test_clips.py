"""Clips: an episode is shown only if it repeats itself here, and a film is never larger than it may be."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from PIL import Image

from m3dt_agent.data.episodes import write_dataset
from m3dt_agent.data.shards import rollout
from m3dt_agent.envs.make import make_env
from m3dt_agent.tasks import TaskSpec, register
from m3dt_agent.view.clips import FRAMES, bytes_each, clips_of_dataset, film, replay
from m3dt_agent.view.dataset_stats import read_stats

RNG = np.random.default_rng(0)


class Painted(gym.Env[Any, Any]):
    """A point that actions and the seed's noise move, drawn as a bright row. drifts: noise that no seed decides is added."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, drifts: bool = False, draws: bool = True) -> None:
        self.render_mode, self._drifts, self._draws = render_mode, drifts, draws

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = float(self.np_random.uniform())
        return np.array([self._at], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at += float(action[0]) + float(self.np_random.normal()) + (RNG.normal() if self._drifts else 0.0)
        return np.array([self._at], np.float32), self._at, False, False, {}

    def render(self) -> Any:
        if not self._draws:
            raise RuntimeError("no <display>")
        frame = np.zeros((60, 60, 3), np.uint8)
        frame[int(abs(self._at) * 10) % 60] = 255
        return frame


gym.register("m3dt-tests/Painted-v0", entry_point=Painted)


def spec(**kwargs: Any) -> TaskSpec:
    return TaskSpec("painted", "own", 1, 1, 30, 1.0, "return", env="m3dt-tests/Painted-v0", env_kwargs=kwargs)


def recorded(root: Path, task: TaskSpec, *, seeds: bool = True) -> Path:
    env = make_env(task)
    policy = lambda observation: np.clip(-observation, -1.0, 1.0)  # noqa: E731
    policy.reset = lambda seed: None
    made = [rollout(env, task, policy, 10 + i) for i in range(5)]
    made = made if seeds else [dataclasses.replace(one, seed=None) for one in made]
    return write_dataset(root, task, "mixed", made, metadata={})


@pytest.mark.usefixtures("own_registry")
def test_the_best_the_median_and_the_worst_episode_are_shown(tmp_path: Path) -> None:
    task = register(spec())
    stats = read_stats("painted", "mixed", recorded(tmp_path, task))
    best, median, worst = clips_of_dataset(stats, 50_000)
    order = np.argsort(-stats.returns)
    for (content, words), name, index in zip((best, median, worst), ("best", "median", "worst"), order[[0, 2, 4]], strict=True):
        said = f"{name}: episode {index}, return {stats.returns[index]:,.2f}, 30 steps; repeated from its seed and actions"
        assert words == said
        assert content is not None
        with Image.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("WEBP", (144, 144))
            assert 20 < picture.n_frames <= 31  # equal ones are one


@pytest.mark.usefixtures("own_registry")
def test_an_episode_that_goes_another_way_is_not_shown(tmp_path: Path) -> None:
    task = register(spec(drifts=True))
    content, words = clips_of_dataset(read_stats("painted", "mixed", recorded(tmp_path, task)), 50_000)[0]
    assert content is None
    assert words.endswith(
        "not shown: played again here from its seed and actions it goes another way, reward 1 is the first that differs"
    )


@pytest.mark.usefixtures("own_registry")
def test_why_there_is_no_clip_is_said(tmp_path: Path) -> None:
    silent = register(spec(draws=False))
    path = recorded(tmp_path, silent, seeds=False)
    assert clips_of_dataset(read_stats("painted", "mixed", path), 50_000)[0][1].endswith(
        "the dataset has no seed to start it from"
    )
    path = recorded(tmp_path / "seeded", silent)
    assert clips_of_dataset(read_stats("painted", "mixed", path), 50_000) == [(None, "no clips: RuntimeError: no <display>")]


def test_a_replay_notices_an_end_that_comes_too_early_and_a_small_difference() -> None:
    env = Painted("rgb_array")
    actions = np.zeros((5, 1), np.float32)
    env.reset(seed=3)
    rewards = np.array([env.step(action)[1] for action in actions], np.float32)
    whole = replay(env, 3, actions, rewards, frames=3)
    assert (whole.differs, len(whole.frames)) == (None, 3)
    assert whole.episode_return == pytest.approx(float(rewards.sum()))
    assert replay(env, 3, actions, rewards + np.array([0, 0, 0.01, 0, 0], np.float32)).differs == 2
    assert replay(gym.wrappers.TimeLimit(env, 3), 3, actions, rewards).differs == 2


@pytest.mark.parametrize("budget", [500, 8_000, 1_000_000])
def test_a_film_fits(budget: int) -> None:
    frames = [Image.fromarray(RNG.integers(0, 255, (48, 48, 3), np.uint8)) for _ in range(60)]
    with Image.open(io.BytesIO(content := film(frames, budget))) as picture:
        kept = getattr(picture, "n_frames", 1)
    assert (len(content) <= budget) or kept == 1
    assert kept == {500: 1, 1_000_000: FRAMES}.get(budget, kept)


def test_clips_share_the_page() -> None:
    assert bytes_each(1) == bytes_each(3) > bytes_each(24) > bytes_each(480) > 4_000
