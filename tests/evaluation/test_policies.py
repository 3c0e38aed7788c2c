"""What can be evaluated: how a policy is called in rows, and whose return-to-go mode holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts import random_bank, random_datasets

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.evaluation import AgentPolicy, BehaviorPolicies, evaluate
from m3dt_agent.evaluation.policies import as_policy
from m3dt_agent.model import Routing

TASK = "cheetah-vel-25"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> M3DTAgent:
    folder: Path = tmp_path_factory.mktemp("policies")
    data = random_datasets(folder / "data", [TASK])
    return M3DTAgent.from_pretrained(random_bank(folder / "bank", data, ModelConfig.preset("tiny")).path)


def test_a_policy_is_named_by_the_experts_that_act(agent: M3DTAgent) -> None:
    names = {"mixture": "m3dt-mixture", "none": "m3dt-backbone", 1: "m3dt-expert-1", Routing(max_experts=2): "m3dt-routed"}
    before = agent.experts
    for experts, name in names.items():
        agent.experts = experts  # type: ignore[assignment]
        assert AgentPolicy(agent).name == name
        assert AgentPolicy(agent, name="mine").name == "mine"
    agent.experts = before


def test_an_agent_a_level_and_a_policy_become_policies(agent: M3DTAgent) -> None:
    config = EvalConfig()
    assert as_policy(agent, config).name == "m3dt-mixture"
    assert as_policy(agent, config).bank_hash == agent.content_hash
    level, own = as_policy("random", config), BehaviorPolicies("zero")
    assert (type(level), level.name) == (BehaviorPolicies, "random")
    assert as_policy(own, config) is own


@pytest.mark.parametrize("mode", ["rewards", "constant"])
def test_the_return_to_go_goes_on_as_the_config_says_unless_the_policy_has_its_own_mode(agent: M3DTAgent, mode: Any) -> None:
    other: Any = {"rewards": "constant", "constant": "rewards"}[mode]

    def score(policy: M3DTAgent | AgentPolicy, of_config: Any) -> float:
        (row,) = evaluate(policy, [TASK], EvalConfig(episodes=1, slots=1, workers=0, rtg_mode=of_config))
        return row.episode_return

    expected = score(agent, mode)
    assert expected != score(agent, other)
    assert score(AgentPolicy(agent), mode) == expected
    assert score(AgentPolicy(agent, mode), other) == expected


def test_a_policy_keeps_its_name_in_an_evaluation(agent: M3DTAgent) -> None:
    (row,) = evaluate(AgentPolicy(agent, name="mine"), [TASK], EvalConfig(episodes=1, slots=1, workers=0))
    assert (row.policy, row.bank_hash) == ("mine", agent.content_hash)
