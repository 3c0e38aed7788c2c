"""A cell's settings as the model and the stages have them."""

from __future__ import annotations

import pytest

from benchmarks.experiments.budgets import step_flop, three_stage_flop, three_stage_windows
from benchmarks.experiments.scales import published_settings
from benchmarks.settings import model_config, stage_setting

SETTINGS = published_settings("m3dt-random", 10, {})


def test_token_kinds_are_those_of_the_package_unless_a_cell_says_otherwise() -> None:
    assert model_config(SETTINGS).use_returns
    parts = {"use_returns": False, "use_timesteps": False, "use_embed_norm": False}
    changed = model_config({**SETTINGS, **parts}, n_experts=3)
    assert {name: getattr(changed, name) for name in parts} == parts
    assert changed.n_experts == 3
    with pytest.raises(KeyError, match="embed_dim"):
        model_config({})


def test_a_stage_has_its_own_number_where_the_cell_has_one() -> None:
    own = {**SETTINGS, "expert_batch_size": 4}
    assert [stage_setting(own, stage, "batch_size") for stage in ("backbone", "experts", "router")] == [16, 4, 16]
    assert stage_setting(SETTINGS, "experts", "batch_size") == 16
    assert stage_setting({**SETTINGS, "router_learning_rate": 0.5}, "router", "learning_rate") == 0.5
    with pytest.raises(KeyError, match="ema"):
        stage_setting(SETTINGS, "experts", "ema")


def test_budgets_count_the_windows_that_each_stage_has() -> None:
    own = {**SETTINGS, "expert_batch_size": 4, "backbone_steps": 5, "expert_steps": 3, "router_steps": 2}
    assert three_stage_windows(own) == 5 * 16 + SETTINGS["n_experts"] * 3 * 4 + 2 * 16
    config = model_config(own)
    experts = SETTINGS["n_experts"] * 3 * step_flop(config, "experts", 4)
    assert three_stage_flop(own) == 5 * step_flop(config, "backbone", 16) + experts + 2 * step_flop(config, "router", 16)
