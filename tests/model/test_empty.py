"""A model without initial weights: the same parameters as any other, handed out only once all of them are written."""

from __future__ import annotations

import threading

import pytest
import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ConfigError, ShapeError
from m3dt_agent.model import M3DT
from m3dt_agent.model.empty import EmptyModel

CONFIG = ModelConfig.preset("tiny", max_timesteps=50)


def test_it_takes_the_weights_of_another_model_and_draws_no_random_numbers() -> None:
    full = M3DT(CONFIG)
    before = torch.random.get_rng_state()
    empty = EmptyModel(CONFIG)
    assert torch.equal(torch.random.get_rng_state(), before)
    empty.load_tensors(dict(full.named_parameters()))
    model = empty.finished()
    for (name, ours), (other, theirs) in zip(model.named_parameters(), full.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert ours.data_ptr() % 64 == 0


def load_all(empty: EmptyModel, full: M3DT, without: str) -> None:
    """Loads every part but one, from a thread each."""
    loads = {
        "backbone": lambda: empty.load_tensors(full.backbone_tensors()),
        "router": lambda: empty.load_tensors(full.router_tensors()),
        **{f"expert {e}": lambda e=e: empty.load_expert(e, full.expert_slice(e)) for e in range(CONFIG.n_experts)},
    }
    threads = [threading.Thread(target=load) for name, load in loads.items() if name != without]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("without", ["backbone", "router", "expert 0", "expert 1", "expert 2"])
def test_a_model_that_lacks_a_part_is_not_handed_out(without: str) -> None:
    full, empty = M3DT(CONFIG), EmptyModel(CONFIG)
    load_all(empty, full, without)
    with pytest.raises(ConfigError, match="tensors of the model were never loaded, such as") as caught:
        empty.finished()
    assert ("of " + without in str(caught.value)) == without.startswith("expert")


def test_a_model_with_all_parts_is_handed_out() -> None:
    full, empty = M3DT(CONFIG), EmptyModel(CONFIG)
    load_all(empty, full, without="")
    assert all(torch.equal(a, b) for a, b in zip(empty.finished().parameters(), full.parameters(), strict=True))


def test_a_part_that_was_refused_counts_as_not_loaded() -> None:
    full, empty = M3DT(CONFIG), EmptyModel(CONFIG)
    load_all(empty, full, without="expert 1")
    wrong = {name: tensor[..., :1] for name, tensor in full.expert_slice(1).items()}
    with pytest.raises(ShapeError, match="must have shape"):
        empty.load_expert(1, wrong)
    with pytest.raises(ConfigError, match="expert 1"):
        empty.finished()
