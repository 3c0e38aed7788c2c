"""What every config has in common: bad values are named, unknown names are refused, dictionaries are round-tripped."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
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


CONFIGS: list[Any] = [
    ModelConfig.preset("tiny", top_k=2),
    DataConfig(),
    EvalConfig(),
    BackboneConfig(steps=3),
    ExpertsConfig(steps=3),
    RouterConfig(steps=3),
]
FIELDS = [
    pytest.param(config, field.name, id=f"{type(config).__name__}.{field.name}")
    for config in CONFIGS
    for field in dataclasses.fields(config)
]
NO_NUMBERS = ["1", b"1", True, [1], {1: 1}, 1j, object(), np.ones(2), float("nan"), float("inf"), 10**400]
NO_INTEGERS = [*NO_NUMBERS[:-1], 1.5, 1.0, np.float32(1), -(10**400)]


def never_valid(annotation: Any) -> list[Any]:
    """Values that a field of this annotation must refuse."""
    if annotation in (int, float):
        return [None, *(NO_INTEGERS if annotation is int else NO_NUMBERS)]
    if annotation is bool:
        return [None, 1, 0, "True", np.ones(2, bool)]
    if get_origin(annotation) is not None and type(None) in get_args(annotation):
        return never_valid(get_args(annotation)[0])[1:]
    return [None, 1, "", "else", b"data", ["data"], np.array(["data"]), {"metaworld": 1.5}, {"metaworld": True}, {1: 1}]


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_a_value_of_another_type_is_refused_with_what_is_valid(config: Any, name: str) -> None:
    for value in never_valid(get_type_hints(type(config))[name]):
        with pytest.raises(ConfigError, match=rf"{type(config).__name__}\.{name} must be .*; got"):
            dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_numbers_of_numpy_are_numbers(config: Any, name: str) -> None:
    value = getattr(config, name)
    given = {bool: np.bool_, int: np.int64, float: np.float64}.get(type(value), lambda same: same)(value)
    made = dataclasses.replace(config, **{name: given})
    assert made == config
    assert type(getattr(made, name)) is type(value)
    json.dumps(dataclasses.asdict(made))


def test_weights_of_numpy_are_kept_as_integers_of_python() -> None:
    weights = BackboneConfig(steps=1, domain_weights={"dmcontrol": np.int32(2)}).domain_weights  # type: ignore[dict-item]
    assert json.dumps(weights) == '{"dmcontrol": 2}'


def test_numbers_of_python_are_kept_as_they_are_given_so_that_old_configs_keep_their_hash() -> None:
    assert json.dumps(dataclasses.asdict(BackboneConfig(steps=1, learning_rate=1, weight_decay=0)))[:200].count(".0") == 0
    assert type(ModelConfig.preset("tiny", dropout=0).dropout) is int


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
