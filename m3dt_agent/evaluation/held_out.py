"""What can be measured on held-out demonstrations, without a simulator: action errors and the router's weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..agent import Experts, M3DTAgent
from ..config import Stage
from ..data.batches import BatchSampler
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError
from ..tasks import lookup

_ERROR_BATCH = 128
"""Windows predicted at once in `action_error`."""


@torch.inference_mode()
def action_error(
    agent: M3DTAgent, data: TaskDatasets, *, experts: Experts | None = None, n_windows: int = 256, seed: int = 0
) -> dict[str, float]:
    """Task → mean squared error of the actions that the agent predicts for `data`, without padded steps and dimensions.

    Args:
        data: held-out demonstrations of tasks that the agent has. Windows are cut from the episodes that are not prompts,
            normalized with the agent's statistics and prompted with its best prompt.
        experts: as `M3DTAgent.experts`; None is what the agent is set to.
        n_windows: per task.
        seed: decides the windows, which are the same for all agents with one context length.

    Raises:
        UnknownTaskError: a task the agent does not have.
        ConfigError: experts the agent does not have.
    """
    experts = agent.experts if experts is None else agent.checked_experts(experts)
    errors = {}
    for task in data.tasks:
        model, its_own = agent.acts_with(task)
        choice = experts if model is agent.model else its_own
        sampler = best_prompt_sampler(agent, data.subset([task]), "backbone", min(n_windows, _ERROR_BATCH), seed)
        total, count = 0.0, 0
        for step, first in enumerate(range(0, n_windows, _ERROR_BATCH)):
            batch = sampler.sample_task(0, step).to(agent.device, agent.dtype)
            mask = batch.action_mask & (torch.arange(len(batch.tasks), device=agent.device) < n_windows - first)[:, None, None]
            difference = model(batch.window, batch.prompt, choice) - batch.targets  # (B, T, D_a)
            total += float(difference[mask].cpu().double().square().sum())  # not every device has float64
            count += int(mask.sum())
        errors[task.name] = total / count
    return errors


def router_usage(agent: M3DTAgent, data: TaskDatasets, *, n_windows: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """Task → (E,) the router's weights of the experts, averaged over windows of `data`, blocks and real steps.

    Raises:
        UnknownTaskError: a task the agent does not have.
    """
    return {task: weights.mean(dim=(0, 1)).tolist() for task, weights in _router_weights(agent, data, n_windows, seed)}


def router_usage_of_blocks(
    agent: M3DTAgent, data: TaskDatasets, *, n_windows: int = 64, seed: int = 0
) -> dict[str, list[list[float]]]:
    """Task → (L, E) the router's weights in each block, averaged as `router_usage` averages them over windows and real steps.

    Raises:
        UnknownTaskError: a task the agent does not have.
    """
    return {task: weights.mean(dim=0).tolist() for task, weights in _router_weights(agent, data, n_windows, seed)}


@torch.inference_mode()
def _router_weights(agent: M3DTAgent, data: TaskDatasets, n_windows: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Task by task the router's weights at each of n real steps, (n, L, E).

    Raises:
        ConfigError: a task by which the bank has grown.
    """
    if grown := [task.name for task in data.tasks if agent.acts_with(task)[0] is not agent.model]:
        raise ConfigError(f"the router weighs no experts for {', '.join(grown)}, by which the bank has grown: their own acts")
    sampler = best_prompt_sampler(agent, data, "router", n_windows, seed)
    for i, task in enumerate(data.tasks):
        batch = sampler.sample_task(i, 0).to(agent.device, agent.dtype)
        yield task.name, agent.model.router_weights(batch.window, batch.prompt)[batch.window.mask]


def best_prompt_sampler(agent: M3DTAgent, data: TaskDatasets, stage: Stage, batch_size: int, seed: int) -> BatchSampler:
    """Samples windows of one task at a time, prompted as the agent is when it acts, as wide as the model of the first takes.

    Raises:
        UnknownTaskError: a task the agent does not have. StageError: its expert is not trained yet.
    """
    config = agent.acts_with(data.tasks[0])[0].config
    best = {task.name: lookup(dict(agent.prompts), task.name, "task of this agent")[:1] for task in data.tasks}
    return BatchSampler(data, agent.statistics, best, config, batch_size=batch_size, tasks_per_batch=1, seed=seed, stage=stage)
