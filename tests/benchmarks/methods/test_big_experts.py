"""Big experts: copies of the backbone at first, each trained on its group."""

from __future__ import annotations

import torch
from method_runs import MakeWork, batch_of, lively, model_of, train, weights

from benchmarks.methods import costs
from benchmarks.methods.big_experts import BigExperts
from m3dt_agent.model import M3DT


def test_big_experts_that_are_copies_of_the_backbone_are_the_backbone(make_work: MakeWork) -> None:
    work = make_work("m3dt-random")
    config = work.model_config(n_experts=0)
    torch.manual_seed(0)
    backbone = lively(M3DT(config))
    copies = [M3DT(config) for _ in range(3)]
    for copy in copies:
        copy.load_state_dict(backbone.state_dict())
    model, batch = BigExperts(backbone, copies).eval(), batch_of(work, config)
    with torch.no_grad():
        torch.testing.assert_close(model(batch.window, batch.prompt, "mixture"), backbone(batch.window, batch.prompt))
    shared = costs.count_parameters(backbone) - sum(p.numel() for p in backbone.blocks.parameters())
    blocks, router = costs.count_parameters(backbone) - shared, sum(p.numel() for p in model.router.parameters())
    assert costs.count_parameters(model) == shared + 4 * blocks + router


def test_big_experts_are_trained_on_their_groups_and_nothing_else_moves(make_work: MakeWork) -> None:
    backbone = weights(train(make_work("prompt-dt", folder="prompt-dt")))
    outcome = train(make_work("m3dt-big-experts"))
    model = model_of(outcome)
    assert isinstance(model, BigExperts)
    for name, tensor in backbone.items():
        assert torch.equal(model.state_dict()[name], tensor)
    first, *experts = (dict(tower.named_parameters()) for tower in model.towers)
    for name in first:
        moved = [not torch.equal(expert[name], first[name]) for expert in experts]
        assert moved == [name.startswith("blocks.")] * 2, name
    assert not torch.equal(experts[0]["blocks.0.ffn.w_in.weight"], experts[1]["blocks.0.ffn.w_in.weight"])
