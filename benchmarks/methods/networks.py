"""Any network in the place of M3DT's: sampler, training loop, checkpoints, agent and counts of FLOP are those of all methods.

    network(window, tasks) → actions          window: T steps of B episodes; tasks (B,): the number of each one's task

A network is told the task by its place among the cell's tasks. The number travels as in `mtdt`: as the timestep of a prompt of
one step, of which nothing else is read.

A network clones behavior: its loss is the mean squared error of its actions, as in every method. A method with another loss, or
another way to act, is a class of its own with `train` (`base.Method`).

Shape legend: B windows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Batch, Window
from m3dt_agent.errors import ConfigError, ShapeError
from m3dt_agent.model import M3DT, ExpertChoice, PromptCache

from ..records import TaskIdUse
from .backbones import one_run_outcome
from .base import ONE_RUN, Outcome, Work, new_model, run_sampler, steps_at, train_run
from .mtdt import task_numbers


@dataclass(frozen=True, slots=True)
class NetworkMethod:
    """Trains one network on all tasks, for as many steps as the published baselines.

    make: the network of a cell, from its `Work`. Its weights may come from torch's generator, which is seeded for the call. All
        of them are trained, and every weight must take part in every pass. Checkpoints keep no buffers, so these stay as made.
        `forward(window, tasks)` returns actions (B, T, act_dim); that of a step may depend on states and returns-to-go up to
        the step and on actions before it.
    settings: the cell's settings that differ from those of the published baselines or are the method's own. Scales map those
        that all methods share, as they do for every method.
    task_id: what the network uses the number of the task for: "acting", or "none" if it does not look at it.
    """

    make: Callable[[Work], nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    task_id: TaskIdUse = "acting"
    fractions: tuple[str, ...] = ONE_RUN

    def train(self, work: Work, fraction: str) -> Outcome:
        """As `Method.train`.

        Raises:
            ConfigError: a pass changes a buffer of the network, or leaves a weight out.
            ShapeError: actions of another shape.
        """
        config = work.model_config(n_experts=0, prompt_length=1)
        model = new_model(work, config, lambda config: NetworkModel(config, self.make(work)))
        assert isinstance(model, NetworkModel)
        numbers = task_numbers(work.data.tasks)
        _require_trainable(model, run_sampler(work, config, work.train_config("backbone"), numbers).sample(0))
        steps = steps_at(fraction, work.setting("backbone_steps"))
        curve = train_run(work, model, model.backbone_tensors(), steps=steps, prompts=numbers)
        agent = M3DTAgent.from_model(model, work.data.tasks, work.statistics(), numbers, device=work.device)
        return one_run_outcome(work, agent, config, steps, curve)


class NetworkModel(M3DT):
    """A network with the face of an M3DT without experts. It holds nothing of M3DT's own."""

    def __init__(self, config: ModelConfig, network: nn.Module) -> None:
        with torch.device("meta"):
            super().__init__(config)
        for name in list(self._modules):
            delattr(self, name)
        self.blocks = nn.ModuleList([network])

    def backbone_tensors(self) -> dict[str, nn.Parameter]:
        """Everything, whatever the network's parts are called."""
        return dict(self.named_parameters())

    def expert_tensors(self) -> dict[str, nn.Parameter]:
        return {}

    def router_tensors(self) -> dict[str, nn.Parameter]:
        return {}

    def forward(self, window: Window, prompt: Window, experts: ExpertChoice = "none") -> Tensor:
        """Actions (B, T, act_dim). The task's number is the prompt's last timestep."""
        self._check(prompt, "prompt")
        return self._actions(window, prompt.timesteps[:, -1], experts)

    def encode_prompt(self, prompt: Window, experts: ExpertChoice = "none") -> PromptCache:
        """The task numbers of B prompts as keys (1, B, 1, 1, 1), without values."""
        self._check(prompt, "prompt")
        self._choose(experts, len(prompt.mask))
        numbers = prompt.timesteps[:, -1].to(prompt.states.dtype)[None, :, None, None, None]
        return PromptCache(numbers, numbers[..., :0], prompt.mask.clone())

    def act(self, window: Window, cache: PromptCache, experts: ExpertChoice = "none") -> Tensor:
        """The action (B, act_dim) of the last step of each window; equals `forward(...)[:, -1]`."""
        return self._actions(window, cache.keys[0, :, 0, 0, 0].long(), experts)[:, -1]

    def _actions(self, window: Window, tasks: Tensor, experts: ExpertChoice) -> Tensor:
        self._check(window, "window")
        self._choose(experts, len(window.mask))
        if len(tasks) != len(window.mask):
            raise ShapeError(f"window has {len(window.mask)} rows, but there are {len(tasks)} prompts; the two must be equal")
        actions: Tensor = self.blocks[0](window, tasks)
        expected = (*window.mask.shape, self.config.act_dim)
        if not isinstance(actions, Tensor) or tuple(actions.shape) != expected:
            got = tuple(actions.shape) if isinstance(actions, Tensor) else type(actions).__name__
            raise ShapeError(f"a network returns actions of shape {expected} for these windows; got {got}")
        return actions


def _require_trainable(model: NetworkModel, batch: Batch) -> None:
    """Checks that the loop can train and continue this network, by one pass that leaves it as it was."""
    before = {name: buffer.clone() for name, buffer in model.blocks[0].named_buffers()}
    with torch.random.fork_rng():
        model(batch.window, batch.prompt).sum().backward()
    unused = [name for name, weight in model.blocks[0].named_parameters() if weight.grad is None]
    changed = [name for name, buffer in model.blocks[0].named_buffers() if not torch.equal(buffer, before[name])]
    if unused:
        raise ConfigError(f"weights of the network that take no part in its actions: {', '.join(unused)}; remove them")
    if changed:
        raise ConfigError(f"buffers of the network that a pass changes, and checkpoints do not keep: {', '.join(changed)}")
    model.zero_grad()
