"""A bank of three tasks of different widths, one of them with bounds of its own, its agent, and a file of it. Never changed."""

from __future__ import annotations

import numpy as np
import pytest
from contracts import random_files
from own_tasks import SWING

from m3dt_agent import tasks
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import DataConfig, ModelConfig
from m3dt_agent.data.prompts import Prompt
from m3dt_agent.data.stats import TaskStatistics
from m3dt_agent.tasks import TaskSpec

CONFIG = ModelConfig(16, 1, 2, 3, context_length=4, prompt_length=2, max_timesteps=200)


def _statistics(task: TaskSpec) -> TaskStatistics:
    mean = np.linspace(-0.5, 0.5, task.obs_dim, dtype=np.float32)
    return TaskStatistics(mean, np.full(task.obs_dim, 2, np.float32), task.return_scale, 0.5 * task.return_scale, 10.0)


def _prompt(task: TaskSpec, seed: int) -> Prompt:
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(2, task.obs_dim)), rng.uniform(-1, 1, (2, task.act_dim))
    return Prompt(states.astype(np.float32), actions.astype(np.float32), np.array([2.0, 1.0], np.float32), np.array([13, 14]))


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    """Every stage done."""
    specs = [SWING, tasks.get("cheetah-vel-25"), tasks.get("ant-dir-3")]
    statistics = {task.name: _statistics(task) for task in specs}
    prompts = {task.name: (_prompt(task, 0), _prompt(task, 1)) for task in specs}
    bank = ExpertBank.create(tmp_path_factory.mktemp("export") / "bank", CONFIG, specs, statistics, prompts, DataConfig())
    bank.commit(random_files(CONFIG))
    return bank


@pytest.fixture
def agent(bank: ExpertBank) -> M3DTAgent:
    return M3DTAgent.load(bank.path)
