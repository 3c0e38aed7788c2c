"""Gradient conflict of a trained model, for each kind of module (M3DT, section 3 and appendix A.4).

    conflict of a module = 1 - mean_t cos(g_t, ḡ)    g_t: gradient of task t's loss by the module's parameters, ḡ = mean_t g_t

    attention   queries, keys, values and outputs of all blocks
    ffn         feed-forward parts of the backbone's blocks
    experts     experts of all blocks
    router      routers of all blocks
    other       embeddings, norms, the action head

All parameters count, whether a stage froze them or not. The gradients are taken on the training data, without dropout.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import TrainConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.training.conflict import mean_gradient, task_gradients

BATCHES = 2
"""Batches per task. The result is the mean over them."""
MODULES = ("attention", "ffn", "experts", "router", "other")


def conflict_by_module(agent: M3DTAgent, data: TaskDatasets, config: TrainConfig) -> dict[str, float]:
    """The conflict of every kind of module in the agent's model, and of "all" parameters together.

    config: gives the batch size, the seed and the stage of the batches.
    """
    sampler = BatchSampler(
        data,
        agent.statistics,
        agent.prompts,
        agent.config,
        batch_size=config.batch_size,
        tasks_per_batch=1,
        seed=config.seed,
        stage=config.stage,
    )
    parameters = dict(agent.model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    owners = {name: module_of(name) for name in parameters}
    sizes = [parameter.numel() for parameter in parameters.values()]
    agreement = dict.fromkeys((*(m for m in MODULES if m in owners.values()), "all"), 0.0)
    for batch in range(BATCHES):

        def gradients(batch: int = batch) -> Iterator[Tensor]:
            return task_gradients(agent.model, parameters, sampler, batch, experts=agent.experts)

        mean = mean_gradient(gradients)
        for gradient in gradients():  # computed again, because those of 160 tasks may not fit in memory
            for module, cosine in _cosines(gradient, mean, sizes, list(owners.values())).items():
                agreement[module] += cosine / (BATCHES * len(data.tasks))
    return {module: 1.0 - cosine for module, cosine in agreement.items()}


def module_of(name: str) -> str:
    """The kind of module that a parameter belongs to."""
    return next((module for module in MODULES[:-1] if f".{module}." in name), "other")


def _cosines(gradient: Tensor, mean: Tensor, sizes: list[int], owners: list[str]) -> dict[str, float]:
    """The cosine between a flat gradient and the mean one, per module and for "all"; 0 if a gradient is zero."""
    products = dict.fromkeys((*owners, "all"), np.zeros(3))  # g·ḡ, g·g, ḡ·ḡ
    for owner, g, m in zip(owners, torch.split(gradient.double(), sizes), torch.split(mean.double(), sizes), strict=True):
        found = np.array([(g @ m).item(), (g @ g).item(), (m @ m).item()])
        products[owner], products["all"] = products[owner] + found, products["all"] + found
    return {module: float(dot / max(np.sqrt(one * other), 1e-300)) for module, (dot, one, other) in products.items()}
