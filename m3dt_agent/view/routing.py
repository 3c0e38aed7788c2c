"""How much of the router's weight each expert has, for every task and in every block: measured on demonstrations.

The bank itself keeps the last steps of a task's best demonstrations, its prompts. The router reads them as it reads what
happens while the agent acts, so no simulator and no dataset is needed; with datasets, windows of whole episodes are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..agent import M3DTAgent
from ..data.prompts import prompt_window
from ..data.task_datasets import TaskDatasets
from ..evaluation import router_usage_of_blocks

_TASKS_AT_ONCE = 32
MASS = 0.99
"""The share of the weight in `RouterWeights.needed`."""


@dataclass(frozen=True, slots=True, eq=False)
class RouterWeights:
    """Task → (L, E) mean weights, which sum to 1 over the experts. origin: what they were measured on, in words."""

    by_task: Mapping[str, NDArray[np.float64]]
    origin: str

    def heaviest(self, task: str) -> tuple[int, float]:
        """The expert with the largest weight over all blocks, and that weight."""
        mean = self.by_task[task].mean(0)
        return int(mean.argmax()), float(mean.max())

    def needed(self, task: str) -> float:
        """How many experts carry `MASS` of the weight of a block, a mean over the blocks."""
        ordered = np.sort(self.by_task[task], axis=1)[:, ::-1]
        return float(((ordered.cumsum(1) - ordered) < MASS * ordered.sum(1, keepdims=True)).sum(1).mean())


def router_weights(agent: M3DTAgent, data: TaskDatasets | None) -> RouterWeights:
    """The weights of an agent with a trained router, over its own prompts, or over windows of `data` for the tasks in it.

    Raises:
        UnknownTaskError: `data` has a task that the agent does not have.
    """
    if data is not None:
        found = router_usage_of_blocks(agent, data)
        return RouterWeights({task: np.array(rows) for task, rows in found.items()}, "64 windows of each task's demonstrations")
    of_prompts = dict(_over_prompts(agent))
    steps, prompts = agent.config.prompt_length, max(map(len, agent.prompts.values()))
    return RouterWeights(
        of_prompts, f"the last {steps} steps of up to {prompts} demonstrations per task, which the bank keeps as prompts"
    )


@torch.inference_mode()
def _over_prompts(agent: M3DTAgent) -> Iterator[tuple[str, NDArray[np.float64]]]:
    names = list(agent.prompts)
    for first in range(0, len(names), _TASKS_AT_ONCE):
        some = names[first : first + _TASKS_AT_ONCE]
        pairs = [(name, read, agent.prompts[name][0]) for name in some for read in agent.prompts[name]]
        statistics = [agent.statistics[name] for name, _, _ in pairs]
        read, shown = (
            prompt_window(prompts, statistics, agent.config).to(agent.device, agent.dtype)
            for prompts in ([pair[1] for pair in pairs], [pair[2] for pair in pairs])
        )
        weights = agent.model.router_weights(read, shown).double().cpu()  # (B, T, L, E)
        of_task = np.array([some.index(name) for name, _, _ in pairs])
        mask = read.mask.cpu()
        for i, name in enumerate(some):
            rows = torch.from_numpy(np.flatnonzero(of_task == i))
            yield name, weights[rows][mask[rows]].mean(0).numpy()
