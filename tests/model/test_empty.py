"""A model without initial weights: the same parameters as any other, ready to be overwritten."""

import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.model import M3DT
from m3dt_agent.model.empty import empty_model


def test_it_takes_the_weights_of_another_model_and_draws_no_random_numbers():
    config = ModelConfig.preset("tiny", max_timesteps=50)
    full = M3DT(config)
    before = torch.random.get_rng_state()
    model = empty_model(config)
    assert torch.equal(torch.random.get_rng_state(), before)
    model.load_tensors(dict(full.named_parameters()))
    for (name, ours), (other, theirs) in zip(model.named_parameters(), full.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert ours.data_ptr() % 64 == 0
