"""Three tasks of random episodes, really written and packed, and cells of a tiny model on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts import random_datasets

from benchmarks.methods import Work
from benchmarks.records import Cell
from m3dt_agent.data.task_datasets import TaskDatasets

TASKS = ("cheetah-vel-3", "reacher-easy", "cheetah-vel-30")
SETTINGS: dict[str, Any] = {
    "embed_dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "n_experts": 2,
    "context_length": 4,
    "prompt_length": 2,
    "dropout": 0.1,
    "backbone_steps": 6,
    "expert_steps": 4,
    "router_steps": 5,
    "batch_size": 6,
    "learning_rate": 1e-2,
    "router_learning_rate": 2e-2,
    "warmup_steps": 2,
    "tasks_per_batch": None,
    "precision": "float32",
    "threads": 1,
    "grouping_batches": 2,
    "grouping_runs": 2,
}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("datasets"), TASKS)


@pytest.fixture
def make_work(tmp_path: Path, datasets: TaskDatasets) -> Callable[..., Work]:
    """A function that makes the work of a method's cell; its folder is the same when it is called again with the same `folder`.

    Keywords other than `folder` and `on_log` change the cell's settings.
    """

    def make(method: str, *, folder: str = "work", on_log: Any = None, **changes: Any) -> Work:
        cell = Cell("test", method, "three", 0, 0, "smoke", "mixture", TASKS, SETTINGS | changes)
        return Work(cell, datasets, tmp_path / folder, progress=False, on_log=on_log)

    return make
