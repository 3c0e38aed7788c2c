"""Prompts are the last steps of the best episodes, stored raw and shown to the model like windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m3dt_agent import tasks
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.episodes import Episode, read_episodes
from m3dt_agent.data.prompts import Prompt, make_prompts, prompt_window, prompts_from_tensors, prompts_to_tensors
from m3dt_agent.data.stats import TaskStatistics, compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, InvalidValueError, ShapeError

MakeDataset = Callable[..., Path]
CONFIG = ModelConfig.preset("tiny", prompt_length=4)
LENGTHS = {"push": (9, 2, 7, 12), "ant-dir-3": (3, 3, 3), "cheetah-vel-9": (1, 1, 1), "pendulum-swingup": (50, 4, 60)}


@pytest.fixture
def data(tmp_path: Path, make_dataset: MakeDataset) -> TaskDatasets:
    for name, lengths in LENGTHS.items():
        make_dataset(tmp_path, tasks.get(name), lengths)
    return TaskDatasets.open(tmp_path, LENGTHS)


def episodes_of(data: TaskDatasets, tmp_path: Path, name: str) -> list[Episode]:
    return list(read_episodes(tmp_path / "m3dt" / name / "expert-v0"))


def test_last_steps_of_the_best_episodes(data: TaskDatasets, tmp_path: Path) -> None:
    prompts = make_prompts(data, 4)
    assert set(prompts) == set(LENGTHS)
    for name in LENGTHS:
        best = sorted(episodes_of(data, tmp_path, name), key=lambda episode: -episode.episode_return)[:2]
        assert len(prompts[name]) == 2
        for prompt, episode in zip(prompts[name], best, strict=True):
            steps = range(max(0, episode.length - 4), episode.length)
            assert prompt.timesteps.tolist() == list(steps)
            np.testing.assert_array_equal(prompt.states, episode.observations[steps])
            np.testing.assert_array_equal(prompt.actions, episode.actions[steps])
            to_go = [sum(float(r) for r in episode.rewards[t:]) for t in steps]
            np.testing.assert_allclose(prompt.returns_to_go, to_go, rtol=1e-5, atol=1e-5)


def test_window(data: TaskDatasets) -> None:
    prompts, statistics = make_prompts(data, 4), compute_statistics(data)
    names = [*LENGTHS, "push"]
    chosen = [prompts[name][i % 2] for i, name in enumerate(names)]
    window = prompt_window(chosen, [statistics[name] for name in names], CONFIG)
    assert window.states.shape == (5, 4, 39)
    assert window.actions.shape == (5, 4, 8)
    assert window.returns_to_go.shape == (5, 4, 1)
    for row, (name, prompt) in enumerate(zip(names, chosen, strict=True)):
        task, pad = tasks.get(name), 4 - len(prompt.timesteps)
        assert window.mask[row].tolist() == [position >= pad for position in range(4)]
        for position in range(4):
            t = position - pad
            state, action, to_go, timestep = np.zeros(39, np.float32), np.zeros(8, np.float32), 0.0, 0
            if t >= 0:
                raw = (prompt.states[t] - statistics[name].mean) / statistics[name].std
                state[: task.obs_dim] = np.clip(raw, -10.0, 10.0)
                action[: task.act_dim] = prompt.actions[t]
                to_go, timestep = prompt.returns_to_go[t] / task.return_scale, prompt.timesteps[t]
            np.testing.assert_allclose(window.states[row, position], state, rtol=1e-6)
            np.testing.assert_array_equal(window.actions[row, position], action)
            assert window.returns_to_go[row, position, 0].item() == pytest.approx(to_go, rel=1e-6)
            assert window.timesteps[row, position] == timestep


def test_stored_and_read(data: TaskDatasets, tmp_path: Path) -> None:
    before = make_prompts(data, 4)
    save_file(prompts_to_tensors(before), tmp_path / "prompts.safetensors")
    after = prompts_from_tensors(load_file(tmp_path / "prompts.safetensors"))
    assert {name: len(group) for name, group in after.items()} == {name: len(group) for name, group in before.items()}
    for name, group in before.items():
        for expected, found in zip(group, after[name], strict=True):
            for field in ("states", "actions", "returns_to_go", "timesteps"):
                np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
                assert getattr(found, field).dtype == getattr(expected, field).dtype


def test_missing_and_foreign_tensors_are_named(data: TaskDatasets) -> None:
    tensors = prompts_to_tensors(make_prompts(data, 4))
    with pytest.raises(BankError, match=r"missing tensors \['push/1/actions'\]"):
        prompts_from_tensors({key: value for key, value in tensors.items() if key != "push/1/actions"})
    with pytest.raises(BankError, match=r"unknown tensors \['push/0/color'\]"):
        prompts_from_tensors(tensors | {"push/0/color": torch.zeros(3)})


def prompt(length: int = 3, obs_dim: int = 3, act_dim: int = 1, last: int = 10) -> Prompt:
    steps = np.arange(last - length + 1, last + 1, dtype=np.int64)
    return Prompt(
        np.zeros((length, obs_dim), np.float32), np.zeros((length, act_dim), np.float32), np.zeros(length, np.float32), steps
    )


def plain(obs_dim: int = 3) -> TaskStatistics:
    return TaskStatistics(np.zeros(obs_dim, np.float32), np.ones(obs_dim, np.float32), 1.0, 1.0, None)


@pytest.mark.parametrize(
    ("bad", "statistics", "message"),
    [
        (prompt(length=5, last=10), plain(), "5 steps; the model takes at most prompt_length=4"),
        (prompt(obs_dim=4), plain(3), "states 4 wide and statistics 3 wide"),
        (prompt(obs_dim=40), plain(40), r"40 \+ 1 wide; the model takes at most 39 \+ 8"),
        (prompt(act_dim=9), plain(), r"3 \+ 9 wide"),
        (prompt(last=1000), plain(), r"timesteps must be in \[0, 1000\)"),
        (prompt(last=1), plain(), r"timesteps must be in \[0, 1000\)"),
    ],
)
def test_prompts_the_model_cannot_take(bad: Prompt, statistics: TaskStatistics, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        prompt_window([prompt(), bad], [plain(), statistics], CONFIG)


def test_rows_need_one_prompt_and_statistics_each() -> None:
    with pytest.raises(ShapeError, match="2 prompts with 1 statistics"):
        prompt_window([prompt(), prompt()], [plain()], CONFIG)


def test_fields_must_fit_together() -> None:
    good = prompt()
    with pytest.raises(ShapeError, match=r"\(2, 1\)"):
        Prompt(good.states, good.actions[:2], good.returns_to_go, good.timesteps)
    with pytest.raises(ShapeError, match="P >= 1"):
        prompt(length=0)
    with pytest.raises(ShapeError, match=r"\(3, 1\)"):
        Prompt(good.states, good.actions, good.returns_to_go[:, None], good.timesteps)


@pytest.mark.parametrize("name", ["states", "actions", "returns_to_go"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e38])
def test_numbers_that_no_model_can_take(name: str, value: float) -> None:
    with pytest.raises(InvalidValueError, match=f"a prompt needs finite {name} of at most"):
        dataclasses.replace(prompt(), **{name: np.full_like(getattr(prompt(), name), value)})


@pytest.mark.parametrize(("name", "dtype"), [("states", torch.bfloat16), ("actions", torch.int64), ("timesteps", torch.int32)])
def test_tensors_of_another_type_are_named(name: str, dtype: torch.dtype) -> None:
    tensors = prompts_to_tensors({"push": [prompt()]})
    with pytest.raises(BankError, match=f"push/0/{name} is {dtype}; it must be"):
        prompts_from_tensors(tensors | {f"push/0/{name}": tensors[f"push/0/{name}"].to(dtype)})
