"""MTDT: a Decision Transformer without prompts that is told the task by a learned embedding of the task's number.

    R₁ s₁∥e a₁ … R_T s_T∥e          e = task embedding, (D,); the state token is linear(concat(s, e)), (state_dim + D) → D

Sampler, training loop and agent need no change for this: the task's number travels as the timestep of a prompt of one step, and
the `PromptCache` of such a prompt holds e. Nothing else of the prompt is read, and no token attends to it.

The sources give no width for e; ours is that of a token. The embeddings start as N(0, 1), which is the size of a normalized
state, so that tasks differ from the first step on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.data.prompts import Prompt
from m3dt_agent.errors import ShapeError
from m3dt_agent.model import M3DT, ExpertChoice, PromptCache
from m3dt_agent.model.moe import INIT_STD
from m3dt_agent.model.tokens import causal_mask
from m3dt_agent.tasks import TaskSpec

from ..records import TaskIdUse
from .backbones import one_run_outcome
from .base import ONE_RUN, Method, Outcome, Work, new_model, steps_at, train_run


class TaskDT(M3DT):
    """M3DT's backbone with one of `n_tasks` task embeddings instead of a prompt. Shape legend: as in
    `m3dt_agent.model.prompt_dt`."""

    def __init__(self, config: ModelConfig, n_tasks: int) -> None:
        super().__init__(config)
        del self.embed_prompt
        self.task = nn.Embedding(n_tasks, config.embed_dim)
        self.embed.state = nn.Linear(config.state_dim + config.embed_dim, config.embed_dim)
        nn.init.normal_(self.embed.state.weight, std=INIT_STD)
        nn.init.zeros_(self.embed.state.bias)

    def forward(self, window: Window, prompt: Window, experts: ExpertChoice = "none") -> Tensor:
        """Actions (B, T, act_dim), as `M3DT.forward`. The task's number is the prompt's last timestep."""
        self._check(window, "window")
        self._check(prompt, "prompt")
        return self._act(window, self.task(prompt.timesteps[:, -1]), experts, slice(1, None, 3))

    def encode_prompt(self, prompt: Window, experts: ExpertChoice = "none") -> PromptCache:
        """The task embeddings of B prompts as keys (1, B, 1, 1, D), without values."""
        self._check(prompt, "prompt")
        self._choose(experts, len(prompt.mask))
        tasks = self.task(prompt.timesteps[:, -1])[None, :, None, None]  # (1, B, 1, 1, D)
        return PromptCache(tasks, tasks[..., :0], prompt.mask.clone())

    def act(self, window: Window, cache: PromptCache, experts: ExpertChoice = "none") -> Tensor:
        """The action (B, act_dim) of the last step of each window; equals `forward(...)[:, -1]`."""
        self._check(window, "window")
        return self._act(window, cache.keys[0, :, 0, 0], experts, slice(-1, None))[:, 0]

    def _act(self, window: Window, tasks: Tensor, experts: ExpertChoice, states: slice) -> Tensor:
        """Actions of the state tokens `states`, with task embeddings `tasks` (B, D)."""
        if len(tasks) != len(window.mask):
            raise ShapeError(f"window has {len(window.mask)} rows, but there are {len(tasks)} prompts; the two must be equal")
        choice = self._choose(experts, len(tasks))
        told = torch.cat((window.states, tasks[:, None].expand(-1, window.mask.shape[1], -1)), dim=-1)  # (B, T, state_dim + D)
        x = self.dropout(self._embed_window(dataclasses.replace(window, states=told)))  # (B, 3T - 1, D)
        mask = causal_mask(window.mask[:, :0], window.mask, x.shape[1])  # (B, 1, 3T - 1, 3T - 1)
        *blocks, last = self._layers
        for block in blocks:
            x = block(x, mask, choice)
        return self._predict(last(x, mask[:, :, states], choice, queries=states))  # (B, T or 1, act_dim)


def task_numbers(tasks: Sequence[TaskSpec]) -> dict[str, tuple[Prompt, ...]]:
    """The number of each task, which is its place in `tasks`, as a prompt of one step."""

    def number(task: TaskSpec, i: int) -> Prompt:
        states, actions = np.zeros((1, task.obs_dim), np.float32), np.zeros((1, task.act_dim), np.float32)
        return Prompt(states, actions, np.zeros(1, np.float32), np.array([i]))

    return {task.name: (number(task, i),) for i, task in enumerate(tasks)}


@dataclass(frozen=True, slots=True)
class MTDT:
    """Trains one `TaskDT` on all tasks."""

    task_id: TaskIdUse = "acting"
    fractions: tuple[str, ...] = ONE_RUN

    def train(self, work: Work, fraction: str) -> Outcome:
        tasks = work.data.tasks
        config = work.model_config(n_experts=0, prompt_length=1)
        model = new_model(work, config, partial(TaskDT, n_tasks=len(tasks)))
        numbers = task_numbers(tasks)
        steps = steps_at(fraction, work.setting("backbone_steps"))
        curve = train_run(work, model, model.backbone_tensors(), steps=steps, prompts=numbers)
        agent = M3DTAgent.from_model(model, tasks, work.statistics(), numbers, device=work.device)
        return one_run_outcome(work, agent, config, steps, curve)


METHODS: Mapping[str, Method] = {"mtdt": MTDT()}
