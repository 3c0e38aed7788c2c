"""Settings of the stages: presets as published, and help for every field."""

from __future__ import annotations

import dataclasses

import pytest

from m3dt_agent.config import STAGE_CONFIGS, STAGES, DataConfig, ModelConfig, TrainConfig, stage_name, train_preset


def test_the_quick_preset_sees_one_step_and_many_windows() -> None:
    assert ModelConfig.preset("quick").context_length == 1
    assert [train_preset("quick", stage).batch_size for stage in STAGES] == [256, 64, 256]
    short = train_preset("quick", "router", steps=40)
    assert (short.warmup_steps, short.cooldown_steps) == (8, 8)


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


@pytest.mark.parametrize("config", STAGE_CONFIGS.values())
def test_every_setting_has_its_help_in_the_docstring_of_its_class(config: type[TrainConfig]) -> None:
    documented = (TrainConfig.__doc__ or "") + (config.__doc__ or "")
    for field in dataclasses.fields(config):
        assert documented.count(f"{field.name}: {field.metadata['help']}") == 1
