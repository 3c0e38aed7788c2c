"""Datasets of three tasks of different widths, and an agent of a small bank of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts import random_bank, random_datasets

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.task_datasets import TaskDatasets


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    """Of reach, cheetah-vel-25 and ant-dir-3."""
    return random_datasets(tmp_path_factory.mktemp("datasets"), ("reach", "cheetah-vel-25", "ant-dir-3"), episodes=5, length=15)


@pytest.fixture
def agent(tmp_path: Path, data: TaskDatasets) -> M3DTAgent:
    """Its model has the preset "tiny"; each test has its own, because it is reset and its experts are changed."""
    return M3DTAgent.from_pretrained(random_bank(tmp_path / "bank", data, ModelConfig.preset("tiny")).path)
