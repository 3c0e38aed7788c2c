"""What every config has in common: bad values are named, unknown names are refused, dictionaries are round-tripped."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from m3dt_agent.config import (
    BackboneConfig,
    DataConfig,
    EvalConfig,
    ExpertsConfig,
    ModelConfig,
    RouterConfig,
    from_dict,
    stage_name,
    train_preset,
)
from m3dt_agent.errors import ConfigError, UnknownTaskError


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelConfig.preset("tiny", n_heads=3),
        lambda: ModelConfig.preset("tiny", embed_dim=0),
        lambda: ModelConfig.preset("tiny", n_experts=-1),
        lambda: ModelConfig.preset("tiny", dropout=1.0),
        lambda: ModelConfig.preset("tiny", residual="other"),
        lambda: ModelConfig.preset("tiny", top_k=4),
        lambda: ModelConfig.preset("tiny", ffn_multiple=0),
        lambda: DataConfig(std_floor=0.0),
        lambda: DataConfig(target_return="best"),  # type: ignore[arg-type]
        lambda: RouterConfig(steps=0),
        lambda: RouterConfig(steps=1, tasks_per_batch=17),
        lambda: RouterConfig(steps=1, precision="float16"),  # type: ignore[arg-type]
        lambda: train_preset("tiny", 1, early_stop=True),
        lambda: train_preset("tiny", 2, grouping="best"),
        lambda: EvalConfig(episodes=0),
        lambda: EvalConfig(workers=-1),
        lambda: BackboneConfig(steps=1, domain_weights={"dmcontrol": 0}),
        lambda: BackboneConfig(steps=1, domain_weights={"walker-run": 2}),
        lambda: BackboneConfig(steps=1, cooldown_steps=-1),
    ],
)
def test_bad_values_are_named_with_what_is_valid(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be .*; got"):
        make()


@pytest.mark.parametrize("call", [lambda: ModelConfig.preset("papr"), lambda: train_preset("papr", 1), lambda: stage_name(4)])
def test_unknown_presets_and_stages(call: Any) -> None:
    with pytest.raises(UnknownTaskError, match=r"papr|4"):
        call()


@pytest.mark.parametrize(
    "config", [ModelConfig.preset("small"), DataConfig(), ExpertsConfig(steps=3, domain_weights={"metaworld": 2}), EvalConfig()]
)
def test_round_trip_through_a_dict(config: Any) -> None:
    assert from_dict(type(config), dataclasses.asdict(config)) == config


def test_foreign_dicts_are_refused() -> None:
    with pytest.raises(ConfigError, match="stepz"):
        train_preset("tiny", 1, stepz=2)
    with pytest.raises(ConfigError, match="embed_dim"):
        from_dict(ModelConfig, {})
