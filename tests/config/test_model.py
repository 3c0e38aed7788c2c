"""The shape of the network: what banks store of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from m3dt_agent.config import ModelConfig, from_dict

NEWER = {"ffn_multiple": 4, "use_returns": True, "use_timesteps": True, "use_embed_norm": True}


@pytest.mark.parametrize(
    "changes", [{}, {"ffn_multiple": 8}, {"use_returns": False}, {"use_timesteps": False}, {"use_embed_norm": False}], ids=str
)
def test_what_banks_store_of_a_model_names_newer_fields_only_where_they_are_set(changes: dict[str, Any]) -> None:
    config = ModelConfig.preset("tiny", **changes)
    stored = config.to_dict()
    assert set(stored) & set(NEWER) == set(changes)
    assert from_dict(ModelConfig, stored) == config
    assert dataclasses.asdict(config) == NEWER | stored
