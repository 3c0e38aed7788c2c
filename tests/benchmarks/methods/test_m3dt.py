"""The oracle acts with the expert of each slot's task."""

from __future__ import annotations

import numpy as np
from contracts import observations
from method_runs import MakeWork, train

from benchmarks.methods import costs
from benchmarks.methods.m3dt import OraclePolicy
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.model import M3DT


def test_the_oracle_acts_with_the_expert_of_each_slots_task(make_work: MakeWork) -> None:
    outcome = train(make_work("m3dt-oracle"))
    policy, routed = outcome.policy, M3DTAgent.load(make_work("m3dt-oracle").folder / "bank")
    assert isinstance(policy, OraclePolicy)
    assert routed.bank is not None
    assert policy.bank_hash == routed.content_hash
    groups = routed.bank.groups or {}
    tasks = [*routed.tasks, routed.tasks[0]]
    policy.reset(tasks, [(i,) for i in range(len(tasks))])
    obs = np.stack([np.pad(observations(task, 1, i)[0], (0, 39 - task.obs_dim)) for i, task in enumerate(tasks)])
    every = np.ones(len(tasks), bool)
    actions = policy.act(obs, reward=None, reset_mask=every, active=every)
    for i, task in enumerate(tasks):
        routed.experts = groups[task.name]
        routed.reset(task=task)
        np.testing.assert_allclose(actions[i, : task.act_dim], routed.act(obs[i, : task.obs_dim]), rtol=0, atol=1e-6)
        assert (actions[i, task.act_dim :] == 0).all()
    routers = sum(p.numel() for p in M3DT(routed.config).router_tensors().values())
    expert = sum(p[0].numel() for p in M3DT(routed.config).expert_tensors().values())
    assert outcome.parameters == costs.count_parameters(M3DT(routed.config)) - routers
    assert outcome.active_parameters == outcome.parameters - expert
