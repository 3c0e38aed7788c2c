"""Time and disk told before a stage starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, ModelConfig, RouterConfig, TrainConfig, train_preset
from m3dt_agent.data.batches import Batch
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.training import estimate, fit_stage
from m3dt_agent.training.planning.cost import Estimate, disk_bytes
from m3dt_agent.training.shares import Prompts, distinct_prompts


@pytest.mark.parametrize(
    ("stage", "config", "steps"),
    [
        ("backbone", BackboneConfig(steps=50, batch_size=2), 50),
        (2, ExpertsConfig(steps=50, batch_size=2, experts_at_once=2), 100),
        ("router", RouterConfig(steps=50, batch_size=2, precision="bfloat16"), 50),
    ],
)
def test_an_estimate_is_measured_steps_times_their_number(stage: str, config: TrainConfig, steps: int) -> None:
    found = estimate(stage, config, ModelConfig.preset("tiny"))
    assert found.steps == steps
    assert found.seconds == pytest.approx(found.seconds_per_step * steps)
    assert 0 < found.seconds_per_step < 10
    assert str(found).startswith(f"{found.stage} stage: about ")
    assert estimate(stage, config, ModelConfig.preset("tiny"), steps_done=steps).seconds == 0


def test_an_estimate_knows_of_prompts_that_windows_share(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = train_preset("quick", "experts", experts_at_once=2), ModelConfig.preset("quick")
    counted: list[int | None] = []

    def count(batch: Batch, n_groups: int) -> Prompts | None:
        found = distinct_prompts(batch, n_groups)
        counted.append(None if found is None else len(found.prompts.mask))
        return found

    monkeypatch.setattr("m3dt_agent.training.trainer.distinct_prompts", count)
    estimate("experts", config, model, prompts=18)  # of four experts
    assert set(counted) == {2 * 5}
    counted.clear()
    estimate("experts", config, model)
    assert set(counted) == {None}


def test_an_estimate_tells_long_times_in_days() -> None:
    assert "about 23.1 days on 2 CPU thread(s)" in str(Estimate("router", 400_000, 2, 5.0, 2_000_000.0, 10**9))


@pytest.mark.parametrize("stage", ["backbone", "experts", "router"])
def test_a_run_takes_no_more_disk_than_was_told(data: TaskDatasets, make_bank: Callable[..., ExpertBank], stage: str) -> None:
    bank = make_bank(embed_dim=64, n_heads=2)
    for each in ("backbone", "experts", "router"):
        config = train_preset("tiny", each, steps=4, batch_size=2, checkpoint_every=1)
        before = size(bank.path)
        most = [0]
        fit_stage(each, data, bank, config, progress=False, on_log=lambda _, most=most: most.append(size(bank.path)))
        if each == stage:
            told = disk_bytes(each, config, bank.config)
            assert 0.5 * told < max(*most, size(bank.path)) - before < told + 100_000
            return


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"steps": 3}}, "config must be of type RouterConfig; got dict"),
        ({"config": train_preset("tiny", "backbone")}, "config must be of type RouterConfig; got BackboneConfig"),
        ({"model_config": "tiny"}, "model_config must be of type ModelConfig; got str"),
        ({"device": "gpu"}, "device must be one of cpu"),
    ],
)
def test_what_cannot_be_estimated_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"stage": "router", "config": train_preset("tiny", "router"), "model_config": ModelConfig.preset("tiny")}
    with pytest.raises(ConfigError, match=message):
        estimate(**arguments | changes)  # type: ignore[arg-type]
