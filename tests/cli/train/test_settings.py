"""Training settings become options of `m3dt train`, and options become configs."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import pytest
import typer

from m3dt_agent.cli.app import app
from m3dt_agent.cli.train.settings import setting_options, stage_configs, stages_asked
from m3dt_agent.config import STAGE_CONFIGS, STAGES, RouterConfig, TrainConfig, train_preset
from m3dt_agent.errors import ConfigError, UnknownTaskError


def test_the_command_has_an_option_for_each_setting_that_says_so() -> None:
    fields = {field.name: field for config in STAGE_CONFIGS.values() for field in dataclasses.fields(config)}
    declared = {name for name, field in fields.items() if field.metadata["option"]}
    assert {"steps", "batch_size", "early_stop", "grouping", "guide"} <= declared
    assert not declared & {"weight_decay", "log_every", "grouping_runs"}
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {parameter.name: parameter for parameter in command.params}
    assert declared <= set(options)
    assert not (set(fields) - declared) & set(options)
    for name in declared:
        assert options[name].opts == [f"--{name.replace('_', '-')}"]
        assert options[name].secondary_opts == []
        assert options[name].default in (None, False)


def test_options_have_the_types_and_the_help_of_their_fields() -> None:
    options = {option.name: option for option in setting_options()}
    assert (options["steps"].type, options["threads"].type, options["guide"].type) == (int, int, float)
    assert (options["early_stop"].type, options["domain_weights"].type) == (bool, str)
    assert options["grouping"].type == Literal["random", "gradient"]
    assert get_args(options["precision"].type) == ("float32", "bfloat16", "float64", "auto")
    assert options["steps"].help == "Steps of each stage trained."
    assert options["grouping"].help == "Stage 2: how tasks are split over the experts."


def test_stages_take_the_settings_that_they_have() -> None:
    settings = {
        "steps": 7,
        "guide": 0.0,
        "grouping": "random",
        "early_stop": False,
        "seed": None,
        "domain_weights": "dmcontrol:3",
        "domain_experts": "ant-dir:1",
    }
    configs = stage_configs("tiny", STAGES, settings)
    weights = {"domain_weights": {"dmcontrol": 3}}
    assert configs["backbone"] == train_preset("tiny", "backbone", steps=7, **weights)
    assert configs["experts"] == train_preset(
        "tiny", "experts", steps=7, grouping="random", domain_experts={"ant-dir": 1}, **weights
    )
    assert configs["router"] == train_preset("tiny", "router", steps=7, guide=0.0, **weights)


def test_what_is_not_given_is_left_to_the_bank() -> None:
    configs = stage_configs(None, STAGES, {"guide": 0.5, "steps": None, "early_stop": False})
    assert (configs["backbone"], configs["experts"]) == (None, None)
    assert isinstance(configs["router"], RouterConfig)
    assert configs["router"] == train_preset("small", "router", guide=0.5)
    assert all(isinstance(config, TrainConfig) for config in stage_configs("paper", STAGES, {}).values())


@pytest.mark.parametrize(("stage", "stages"), [("all", STAGES), ("2", ("experts",)), ("router", ("router",))])
def test_stages_by_name_and_number(stage: str, stages: tuple[str, ...]) -> None:
    assert stages_asked(stage, {"--shard": None}) == stages


def test_options_of_stage_2_are_refused_for_others() -> None:
    assert stages_asked("experts", {"--shard": "1/2"}) == ("experts",)
    with pytest.raises(ConfigError, match="--shard goes with --stage experts; got --stage all"):
        stages_asked("all", {"--shard": "1/2"})
    with pytest.raises(UnknownTaskError, match="backbones"):
        stages_asked("backbones", {})


def test_settings_of_one_stage_come_before_those_of_all() -> None:
    tables = {"router": {"steps": 3, "concentrate_after": 0.25}}
    configs = stage_configs("tiny", STAGES, {"steps": 7}, tables)  # type: ignore[arg-type]
    assert configs["backbone"] == train_preset("tiny", "backbone", steps=7)
    assert configs["router"] == train_preset("tiny", "router", steps=3, concentrate_after=0.25)
    assert stage_configs(None, STAGES, {}, tables)["router"] == train_preset("small", "router", **tables["router"])  # type: ignore[arg-type]
