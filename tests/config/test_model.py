"""The shape of the network: what banks store of it."""

from __future__ import annotations

import dataclasses

import pytest

from m3dt_agent.config import ModelConfig, from_dict


@pytest.mark.parametrize("multiple", [4, 8])
def test_what_banks_store_of_a_model_names_newer_fields_only_where_they_are_set(multiple: int) -> None:
    config = ModelConfig.preset("tiny", ffn_multiple=multiple)
    stored = config.to_dict()
    assert ("ffn_multiple" in stored) == (multiple != 4)
    assert from_dict(ModelConfig, stored) == config
    assert dataclasses.asdict(config) == {"ffn_multiple": 4} | stored
