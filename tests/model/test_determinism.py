"""Torch's threads and generators: set in a block, as before after it."""

import pytest
import torch

from m3dt_agent.model.determinism import cpu_threads, seeded


def test_threads_are_set_and_restored_also_after_an_error():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="size"), cpu_threads(before + 1):
        torch.zeros(2).view(3)
    assert torch.get_num_threads() == before


def test_seeded_draws_repeat_and_do_not_move_the_generator():
    state = torch.random.get_rng_state()
    drawn = []
    for _ in range(2):
        with seeded(5, torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.random.get_rng_state(), state)
