"""Policies without training cost nothing and play."""

from __future__ import annotations

import pytest
from method_runs import MakeWork, train

from m3dt_agent.config import EvalConfig
from m3dt_agent.evaluation import evaluate


@pytest.mark.parametrize("name", ["random", "zero", "behavior"])
def test_controls_cost_nothing_and_play(make_work: MakeWork, name: str) -> None:
    outcome = train(make_work(name))
    assert (outcome.parameters, outcome.windows, outcome.training_flop) == (0, 0, 0.0)
    (row,) = evaluate(outcome.policy, ["cheetah-vel-3"], EvalConfig(episodes=1, workers=0))
    assert row.policy == ("expert" if name == "behavior" else name)
