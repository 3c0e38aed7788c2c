"""Action errors on held-out demonstrations, against the error over all windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.prompts import Prompt, prompt_window
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.evaluation import action_error

NAMES = ("reach", "cheetah-vel-25", "ant-dir-3")
CONFIG = ModelConfig.preset("tiny")


def test_action_error_is_the_mean_square_over_real_actions(agent: M3DTAgent, data: TaskDatasets) -> None:
    """Few short episodes, each window drawn many times: close to the error over all windows."""
    errors = action_error(agent, data, n_windows=300, seed=1)
    assert list(errors) == list(NAMES)
    assert errors == action_error(agent, data, n_windows=300, seed=1)
    assert errors != action_error(agent, data, n_windows=300, seed=2)
    assert errors != action_error(agent, data, n_windows=300, seed=1, experts="none")
    expected = {task.name: _error_over_all_windows(agent, data, i) for i, task in enumerate(data.tasks)}
    assert errors == pytest.approx(expected, rel=0.1)


def _error_over_all_windows(agent: M3DTAgent, data: TaskDatasets, i: int) -> float:
    """The mean over every window of every training episode, each predicted by itself."""
    task, packed = data.tasks[i], data.packed[i]
    statistics, prompts = [agent.statistics[task.name]], [agent.prompts[task.name][0]]
    config = dataclasses.replace(CONFIG, prompt_length=CONFIG.context_length)  # a window is made like a prompt
    total, count = 0.0, 0
    for episode in data.train_episodes(i):
        rows = np.array(packed.steps[packed.offsets[episode] : packed.offsets[episode + 1]])
        for first in range(len(rows)):
            window = rows[first : first + CONFIG.context_length]
            actions, times = window[:, task.obs_dim : -1], np.arange(first, first + len(window))
            steps = Prompt(window[:, : task.obs_dim], actions, window[:, -1], times)
            with torch.no_grad():
                predicted = agent.model(
                    prompt_window([steps], statistics, config), prompt_window(prompts, statistics, CONFIG), agent.experts
                )
            total += float(np.square(predicted[0, -len(window) :, : task.act_dim].numpy() - actions).sum())
            count += actions.size
    return total / count
