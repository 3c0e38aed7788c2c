"""Models with fewer experts."""

from __future__ import annotations

import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.export.leaving_out import experts_to_keep, router_shares, with_experts


def test_who_carries_enough_on_one_task_is_kept_and_so_is_the_heaviest_of_each() -> None:
    shares = torch.tensor([[[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]], [[0.97, 0.02, 0.01], [0.2, 0.1, 0.7]]])  # (2 tasks, 2, 3)
    assert experts_to_keep(shares, 0.05) == [[0, 1, 2], [0, 1, 2]]
    assert experts_to_keep(shares, 0.35) == [[0], [0, 2]]
    assert experts_to_keep(shares, 0.99) == [[0], [0, 2]]


def test_shares_are_means_over_the_last_prompt_and_experts_that_stay_compute_the_same(agent: M3DTAgent) -> None:
    names = [task.name for task in agent.tasks]
    prompts, statistics = [agent.prompts[name] for name in names], [agent.statistics[name] for name in names]
    shares = router_shares(agent.model, prompts, statistics)
    assert shares.shape == (3, 1, 3)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 1))
    smaller = with_experts(agent.model, [[2, 0]])
    assert agent.model.blocks[0].experts.w_in.shape[0] == 3  # a copy was changed
    h = torch.randn(4, 5, agent.config.embed_dim)
    with torch.no_grad():
        before, after = agent.model.blocks[0].router(h)[..., [2, 0]], smaller.blocks[0].router(h)
        torch.testing.assert_close(after, before / before.sum(-1, keepdim=True))
        whole = torch.zeros(4, 5, 3)
        whole[..., [2, 0]] = after
        torch.testing.assert_close(smaller.blocks[0].experts(h, after), agent.model.blocks[0].experts(h, whole))
