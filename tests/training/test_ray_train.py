"""Stage 1 on Ray Train: two workers on this machine give the weights of one; and what is refused before a worker starts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, ModelConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, MissingDependencyError, StageError
from m3dt_agent.jobs import RayCluster
from m3dt_agent.training import fit_stage
from m3dt_agent.training.checkpoint import newest_checkpoint
from m3dt_agent.training.ray_train import fit_on_ray
from m3dt_agent.training.stage_inputs import create_bank

NAMES = ["cheetah-vel-20", "cheetah-vel-21"]
MODEL = ModelConfig.preset("tiny")
HERE = RayCluster("local", retries=0)
CONFIG: dict[str, Any] = {"steps": 30, "warmup_steps": 0, "learning_rate": 1e-3, "precision": "float64", "threads": 1}


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    pytest.importorskip("mujoco")
    from m3dt_agent.cli import main

    root = tmp_path / "datasets"
    assert main(["collect", *NAMES, "--root", str(root), "--episodes", "4", "--workers", "0"]) == 0
    return root


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray on this machine, which tells nobody of it."""
    pytest.importorskip("ray.train")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def weights(bank: Path) -> Tensor:
    checkpoint, _ = newest_checkpoint(bank, "backbone")
    assert checkpoint is not None
    return torch.cat([weight.flatten() for _, weight in sorted(checkpoint.read("weights").items())])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, (1, 2)])
def test_two_workers_on_ray_are_one(datasets: Path, tmp_path: Path, local_ray: None, workers: int | tuple[int, int]) -> None:
    config, data = BackboneConfig(**CONFIG), TaskDatasets.open(datasets, NAMES)
    fit_on_ray("backbone", data, tmp_path / "ray", config, cluster=HERE, model_config=MODEL, workers=workers)
    fit_stage("backbone", data, create_bank(tmp_path / "one", MODEL, data), config, progress=False)
    ours, theirs = weights(tmp_path / "ray"), weights(tmp_path / "one")
    assert (ours - theirs).norm() <= 1e-7 * theirs.norm()
    assert ExpertBank.open(tmp_path / "ray").status("backbone") == "done"
    assert not list(tmp_path.glob(".ray-*"))


@pytest.mark.slow
def test_what_worker_0_refuses_has_its_own_name(datasets: Path, tmp_path: Path, local_ray: None) -> None:
    create_bank(tmp_path / "bank", MODEL, TaskDatasets.open(datasets, NAMES[:1]))
    data, config = TaskDatasets.open(datasets, NAMES), BackboneConfig(**CONFIG)
    with pytest.raises(BankError, match="was made for other tasks than the data's"):
        fit_on_ray("backbone", data, tmp_path / "bank", config, cluster=HERE, workers=2)


def test_what_cannot_work_is_refused_before_ray_starts(
    make_bank: Callable[..., ExpertBank], data: TaskDatasets, tmp_path: Path
) -> None:
    pytest.importorskip("ray.train")
    bank, here = make_bank().path, dataclasses.replace(data, reopen=lambda: data)
    with pytest.raises(ConfigError, match=r"TaskDatasets\.open"):
        fit_on_ray("backbone", data, bank, BackboneConfig(steps=1), cluster=HERE)
    with pytest.raises(ConfigError, match="--only-experts"):
        fit_on_ray("experts", here, bank, ExpertsConfig(steps=1), cluster=HERE, workers=2)
    with pytest.raises(ConfigError, match="batch_size=3 cannot be shared by 4 workers"):
        fit_on_ray("backbone", here, bank, BackboneConfig(steps=1, batch_size=3), cluster=HERE, workers=(1, 4))
    with pytest.raises(StageError, match="there is no bank at"):
        fit_on_ray("backbone", here, tmp_path / "none", BackboneConfig(steps=1), cluster=HERE, workers=2)


def test_without_ray_the_extra_is_named(data: TaskDatasets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'm3dt-agent\[ray\]'"):
        fit_on_ray("backbone", data, "bank", cluster=HERE)
