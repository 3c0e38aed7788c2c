"""Which settings a stage takes that is given none."""

from __future__ import annotations

import pytest

from m3dt_agent.config import ModelConfig
from m3dt_agent.training.planning.resume import preset_of


@pytest.mark.parametrize("name", ["tiny", "quick", "small", "paper"])
def test_the_preset_of_a_model_is_found_again(name: str) -> None:
    assert preset_of(ModelConfig.preset(name, n_experts=1, state_dim=100)) == name


def test_the_nearest_preset_is_taken() -> None:
    assert preset_of(ModelConfig.preset("small", context_length=3)) == "small"
    assert preset_of(ModelConfig.preset("small", embed_dim=32)) == "paper"
