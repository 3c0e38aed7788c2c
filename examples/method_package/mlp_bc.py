"""The method `mlp-bc` for `python -m benchmarks`: one MLP clones the behavior of all tasks.

It sees one observation, normalized as its task's data says, and which task it is. Nothing before, no return, no prompt.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from benchmarks.methods import NetworkMethod, Work
from m3dt_agent.data.batches import Window


class TaskMLP(nn.Module):
    """(observation, one-hot task) → action, for each step by itself."""

    def __init__(self, n_tasks: int, state_dim: int, act_dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.n_tasks = n_tasks
        widths = [state_dim + n_tasks, *[width] * layers]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, act_dim), nn.Tanh())

    def forward(self, window: Window, tasks: Tensor) -> Tensor:
        """Actions (B, T, act_dim) for a window of T steps of B episodes, whose tasks have the numbers (B,)."""
        states = window.states  # (B, T, state_dim)
        task = one_hot(tasks, self.n_tasks).to(states.dtype)[:, None].expand(-1, states.shape[1], -1)
        actions: Tensor = self.layers(torch.cat((states, task), dim=-1))
        return actions


def make(work: Work) -> TaskMLP:
    """The network of a cell."""
    config = work.model_config(n_experts=0)
    return TaskMLP(len(work.data.tasks), config.state_dim, config.act_dim, work.setting("width"), work.setting("layers"))


METHOD = NetworkMethod(make, settings={"width": 256, "layers": 3})
