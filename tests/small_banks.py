"""Banks of a tiny model with made-up statistics and random weights, for the tests of `bank`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.tensor_files import write_tensors
from m3dt_agent.config import DataConfig, ModelConfig
from m3dt_agent.data.prompts import Prompt
from m3dt_agent.data.stats import TaskStatistics
from m3dt_agent.model import M3DT

CONFIG = ModelConfig(16, 2, 2, n_experts=2, context_length=4, prompt_length=2)
TASKS = ("walker-run", "reach")


def statistics(name: str) -> TaskStatistics:
    dim = tasks.get(name).obs_dim
    return TaskStatistics(np.arange(dim, dtype=np.float32), np.full(dim, 2, np.float32), 1000.0, 812.5, 10.0)


def prompt(name: str) -> Prompt:
    task = tasks.get(name)
    states, actions = np.ones((2, task.obs_dim), np.float32), np.zeros((2, task.act_dim), np.float32)
    return Prompt(states, actions, np.array([2.0, 1.0], np.float32), np.array([498, 499]))


def new_bank(path: Path, config: ModelConfig = CONFIG) -> ExpertBank:
    specs = [tasks.get(name) for name in TASKS]
    prompts = {name: (prompt(name),) for name in TASKS}
    return ExpertBank.create(path, config, specs, {name: statistics(name) for name in TASKS}, prompts, DataConfig())


def random_model(seed: int = 0) -> M3DT:
    torch.manual_seed(seed)
    model = M3DT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def parts(model: M3DT) -> dict[str, dict[str, torch.Tensor]]:
    experts = {f"experts/{e:03d}.safetensors": model.expert_slice(e) for e in range(CONFIG.n_experts)}
    backbone, router = model.backbone_tensors(), model.router_tensors()
    return {"backbone.safetensors": dict(backbone), **experts, "router.safetensors": dict(router)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "bank.json").read_text())
    change(manifest)
    (path / "bank.json").write_text(json.dumps(manifest))


def forge(path: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts a file into a bank, with valid size and hash."""
    record = write_tensors(path / name, tensors)
    edit(path, lambda manifest: manifest["files"].update({name: {"sha256": record.sha256, "bytes": record.bytes}}))


def tree(folder: Path) -> dict[str, tuple[float, bytes]]:
    """Everything below a folder, with content and time of change; links as what they say."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime,
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in (*folder.rglob("*"), folder)
    }
