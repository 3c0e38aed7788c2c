"""Which experts can act: one rule for agents of banks and of models of one's own, however they are chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from contracts import random_bank, random_datasets

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ConfigError
from m3dt_agent.model import M3DT, Routing

NAMES = ("reach", "walker-run")
CONFIG = ModelConfig.preset("tiny", n_experts=2)
WITH_EXPERTS = r"'none', 'mixture', 0, 1, a Routing for this model; got"


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    folder = tmp_path_factory.mktemp("choice")
    return random_bank(folder / "bank", random_datasets(folder / "data", NAMES), CONFIG)


def own(bank: ExpertBank, model: M3DT, **options: Any) -> M3DTAgent:
    return M3DTAgent.from_model(model, bank.tasks, bank.statistics, bank.prompts, **options)


@pytest.mark.parametrize("experts", ["none", "mixture", 0, 1, Routing(max_experts=1)])
def test_what_a_model_of_ones_own_has_can_be_chosen_at_first_and_later(bank: ExpertBank, experts: Any) -> None:
    first, later = own(bank, bank.model(), experts=experts), own(bank, bank.model())
    assert later.experts == "none"
    later.experts = experts
    assert first.experts == later.experts == experts
    actions = []
    for agent in (first, later):
        agent.reset(task="reach")
        actions.append(agent.act(np.ones(39, np.float32)))
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("experts", [2, -1, True, "all"])
def test_what_it_does_not_have_is_refused_at_first_and_later(bank: ExpertBank, experts: Any) -> None:
    with pytest.raises(ConfigError, match=WITH_EXPERTS):
        own(bank, bank.model(), experts=experts)
    agent = own(bank, bank.model(), experts=1)
    with pytest.raises(ConfigError, match=WITH_EXPERTS):
        agent.experts = experts
    assert agent.experts == 1


@pytest.mark.parametrize("experts", ["mixture", 0, Routing()])
def test_a_model_without_experts_is_its_backbone(bank: ExpertBank, experts: Any) -> None:
    model = M3DT(dataclasses.replace(CONFIG, n_experts=0))
    with pytest.raises(ConfigError, match="must be one of 'none' for this model"):
        own(bank, model, experts=experts)
    with pytest.raises(ConfigError, match="must be one of 'none' for this model"):
        own(bank, model).experts = experts


def test_an_expert_that_is_refused_within_an_episode_changes_nothing(bank: ExpertBank) -> None:
    agent, undisturbed = (M3DTAgent.load(bank.path) for _ in range(2))
    obs = np.ones(39, np.float32)
    for one in (agent, undisturbed):
        one.reset(task="reach")
        one.act(obs)
    with pytest.raises(ConfigError, match="for this bank"):
        agent.experts = 7
    np.testing.assert_array_equal(agent.act(obs, reward=1.0), undisturbed.act(obs, reward=1.0))
