"""Banks that have grown, without training: made-up episodes of any task, and random weights for its expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import expert_file
from m3dt_agent.bank.sizes import expert_config
from m3dt_agent.data.pack import PackedTask
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.model import M3DT
from m3dt_agent.model.grown import new_parts
from m3dt_agent.tasks import TaskSpec


def data_of_spec(*tasks: TaskSpec, length: int = 12, seed: int = 0) -> TaskDatasets:
    """Five episodes of a random linear policy on noise for each task."""
    rng, episodes = np.random.default_rng(seed), 5
    packed = []
    for task in tasks:
        n = length * episodes
        states = rng.normal(size=(n, task.obs_dim)).astype(np.float32)
        actions = np.tanh(states @ rng.normal(size=(task.obs_dim, task.act_dim)) / task.obs_dim**0.5).astype(np.float32)
        to_go = np.tile(np.arange(length, 0, -1, np.float32), episodes)
        packed.append(
            PackedTask(
                task=task,
                stored=np.concatenate([states, actions, to_go[:, None]], axis=1),
                offsets=np.arange(episodes + 1) * length,
                returns=np.full(episodes, float(length)),
                success=None,
                stop_after_success=0,
                obs_mean=states.mean(0, dtype=np.float64),
                obs_std=states.std(0, dtype=np.float64),
            )
        )
    return TaskDatasets(tuple(tasks), tuple(packed))


def grown_bank(bank: ExpertBank, path: Path, *tasks: TaskSpec, seed: int = 0) -> ExpertBank:
    """`bank`, grown by the tasks with one expert of random weights."""
    grown = bank.grown(path, data_of_spec(*tasks))
    (expert,) = grown.growths[-1].experts
    torch.manual_seed(seed)
    parts = new_parts(bank.model(), expert_config(grown.manifest, expert))
    tensors = M3DT(expert_config(grown.manifest, expert)).expert_slice(0) | parts
    grown.commit({expert_file(expert): {name: 0.1 * torch.randn(tensor.shape) for name, tensor in tensors.items()}})
    return grown
