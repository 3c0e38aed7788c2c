"""Prompt-DT and the same without returns."""

from __future__ import annotations

import numpy as np
from contracts import observations
from method_runs import MakeWork, train

from m3dt_agent.agent import M3DTAgent


def test_prompt_bc_sees_no_returns(make_work: MakeWork) -> None:
    actions = {}
    for name in ("prompt-dt", "prompt-bc"):
        agent = train(make_work(name, folder=name)).policy
        assert isinstance(agent, M3DTAgent)
        for target in (-1000.0, 1000.0):
            agent.reset(task="cheetah-vel-3", target_return=target)
            actions[name, target] = [agent.act(o, reward=5.0) for o in observations(agent.tasks[0], 3, 0)]
    np.testing.assert_array_equal(actions["prompt-bc", -1000.0], actions["prompt-bc", 1000.0])
    assert not np.array_equal(actions["prompt-dt", -1000.0], actions["prompt-dt", 1000.0])
