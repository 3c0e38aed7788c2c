"""Configurations: presets as published, bad values named, dictionaries round-tripped."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from m3dt_agent.config import (
    STAGES,
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


def test_paper_preset_is_the_published_code() -> None:
    model = ModelConfig.preset("paper")
    assert (model.embed_dim, model.n_layers, model.n_heads, model.n_experts) == (256, 6, 8, 48)
    assert (model.context_length, model.prompt_length, model.dropout) == (20, 5, 0.1)
    assert [train_preset("paper", stage).steps for stage in STAGES] == [400_000, 200_000, 400_000]
    train = train_preset("paper", "router")
    assert (train.batch_size, train.tasks_per_batch, train.learning_rate) == (16, 1, 1e-4)
    assert (train.weight_decay, train.grad_clip, train.warmup_steps) == (1e-4, 0.25, 10_000)
    data = DataConfig.preset("paper")
    assert (data.std_floor, data.constant_std, data.state_clip, data.target_return) == (1e-6, None, None, "published")


def test_a_short_stage_still_reaches_its_learning_rate() -> None:
    assert [train_preset("small", stage).warmup_steps for stage in STAGES] == [200, 200, 200]
    assert train_preset("small", "experts", steps=100).warmup_steps == 20
    assert train_preset("paper", "router", steps=1_000).warmup_steps == 200
    assert train_preset("small", "experts", steps=100, warmup_steps=90).warmup_steps == 90


@pytest.mark.parametrize(("given", "name"), [(1, "backbone"), ("2", "experts"), ("router", "router")])
def test_stages_answer_to_names_and_numbers(given: str | int, name: str) -> None:
    assert stage_name(given) == name
    assert train_preset("tiny", given).stage == name


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


@pytest.mark.parametrize("multiple", [4, 8])
def test_what_banks_store_of_a_model_names_newer_fields_only_where_they_are_set(multiple: int) -> None:
    config = ModelConfig.preset("tiny", ffn_multiple=multiple)
    stored = config.to_dict()
    assert ("ffn_multiple" in stored) == (multiple != 4)
    assert from_dict(ModelConfig, stored) == config
    assert dataclasses.asdict(config) == {"ffn_multiple": 4} | stored


def test_foreign_dicts_are_refused() -> None:
    with pytest.raises(ConfigError, match="stepz"):
        train_preset("tiny", 1, stepz=2)
    with pytest.raises(ConfigError, match="embed_dim"):
        from_dict(ModelConfig, {})
