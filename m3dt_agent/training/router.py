"""Stage 3: only the routers, on batches that mix all tasks; backbone and experts are frozen.

Three options are off by default, as in the published code; every preset but `paper` has `guide`. With `skip_below`, training
skips the experts that a window hardly uses. With `concentrate`, the loss asks the routers to use few experts per window; with
`guide`, to use the expert e on whose group of tasks the window's own task is:

    loss = masked MSE + concentrate · mean over windows and blocks of H(mean over tokens of w)          H: entropy in nats
                      + guide · mean over windows, blocks and tokens of -log wₑ
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..bank.manifest import expert_file
from ..config import RouterConfig
from ..data.batches import Batch, derive_seed
from ..model import M3DT, Routing
from ..model.determinism import seeded
from .run import Run, StepHooks
from .stage_inputs import StageInputs

log = logging.getLogger(__name__)

_LEAST = torch.finfo(torch.float32).tiny
"""Smallest weight in the logarithms: a confident router's weights underflow to 0, where their slope is infinite."""


def runs(inputs: StageInputs[RouterConfig]) -> Iterator[Run]:
    """The stage's one run."""
    bank, config = inputs.bank, inputs.config
    with seeded(derive_seed(config.seed, "router", 0, 0, "init"), inputs.cpu):
        model = M3DT(bank.config)
    bank.load_backbone(model)
    for e in bank.finished_experts:
        bank.load_expert(model, e, slot=e)
    start = {}
    if inputs.start is not None:
        inputs.start.load_router(model)
        start = {"router at the start": inputs.start.manifest.files["router.safetensors"].sha256}
    parameters = model.router_tensors()
    losses = config
    if config.guide and bank.groups is None:  # as of published weights; presets guide, so this is no mistake of the user's
        log.warning("bank %s does not say which expert learned which task, so its router is not guided", bank.path)
        losses = dataclasses.replace(config, guide=0.0)
    at_first = 1 / bank.config.n_experts
    if config.skip_below >= at_first and inputs.start is None:
        log.warning(
            "skip_below is %g, and each of %d experts has about %.3g of a router's weight at first: most are skipped from the "
            "first step on; choose less, such as %.2g",
            *(config.skip_below, bank.config.n_experts, at_first, 0.8 * at_first),
        )
    experts = torch.tensor([(bank.groups or {}).get(task.name, 0) for task in inputs.data.tasks])
    yield Run(
        name="router",
        config=config,
        model=model,
        parameters=parameters,
        samplers=(inputs.sampler(inputs.data),),
        choice=Routing(min_weight=config.skip_below) if config.skip_below else "mixture",
        built_on=inputs.built_on("backbone.safetensors", *map(expert_file, bank.finished_experts)) | start,
        public_files=lambda: {"router.safetensors": inputs.public(parameters)},
        hooks=RouterLosses(model, losses, experts) if losses.concentrate or losses.guide else StepHooks(),
    )


class RouterLosses(StepHooks):
    """Adds the terms of `concentrate` and `guide` to the loss.

    Args:
        experts: (n_tasks,) the expert of each task's group.
    """

    def __init__(self, model: M3DT, config: RouterConfig, experts: Tensor) -> None:
        self._config, self._experts = config, experts
        self._weights: list[Tensor] = []  # one per block, (B, tokens, E)
        for block in model.blocks:
            block.get_submodule("router").register_forward_hook(self._keep)
        self._step = 0

    def before_forward(self, step: int, batch: Batch) -> None:
        self._step = step
        self._weights.clear()
        self._own = self._experts.to(batch.tasks.device)[batch.tasks]  # (B,)

    def extra_loss(self) -> Tensor | float:
        config, done = self._config, self._step / self._config.steps
        total: Tensor | float = 0.0
        if config.concentrate and done >= config.concentrate_after:
            means = (weights.mean(1).clamp_min(_LEAST) for weights in self._weights)  # (B, E)
            total = config.concentrate * torch.stack([torch.special.entr(mean).sum(-1).mean() for mean in means]).mean()
        if config.guide:
            own = (
                weights[torch.arange(len(weights), device=weights.device), :, self._own].clamp_min(_LEAST)
                for weights in self._weights
            )  # (B, tokens)
            total = total - config.guide * torch.stack([weight.log().mean() for weight in own]).mean()
        return total

    def _keep(self, _router: nn.Module, _inputs: tuple[Tensor, ...], weights: Tensor) -> None:
        self._weights.append(weights)
