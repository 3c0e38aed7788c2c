"""Banks that the tests of `agent` share. They are read, never written."""

from __future__ import annotations

import pytest
from acting_banks import CONFIG, NAMES
from contracts import random_bank, random_datasets

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.task_datasets import TaskDatasets


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("datasets"), NAMES)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory, data: TaskDatasets) -> ExpertBank:
    """Every stage done."""
    return random_bank(tmp_path_factory.mktemp("bank") / "whole", data, CONFIG)


@pytest.fixture(scope="session")
def backbone_bank(tmp_path_factory: pytest.TempPathFactory, data: TaskDatasets) -> ExpertBank:
    """Only the backbone."""
    return random_bank(tmp_path_factory.mktemp("bank") / "backbone", data, CONFIG, experts=False)


@pytest.fixture
def agent(bank: ExpertBank) -> M3DTAgent:
    """An agent of `bank`, which the test may change."""
    return M3DTAgent.load(bank.path)
