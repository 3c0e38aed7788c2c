"""Stage 3: the routers alone, on all tasks mixed; backbone and experts are frozen.

Two options, both off as published: experts that a window hardly uses are skipped while training (`skip_below`), and the routers
are asked to use few experts per window (`concentrate`):

    loss = masked MSE + concentrate · mean over windows and blocks of H(mean over tokens of w)          H: entropy in nats
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..bank_files import expert_file
from ..config import RouterConfig
from ..data.batches import Batch, derive_seed
from ..model import M3DT, Routing
from .job import Job
from .loop import Run, StepHooks, seeded

_LEAST = torch.finfo(torch.float32).tiny
"""Of a weight in the entropy, whose slope is infinite at 0, where weights of a router that is sure of itself underflow to."""


def runs(job: Job[RouterConfig]) -> Iterator[Run]:
    """The stage's one run."""
    bank, config = job.bank, job.config
    with seeded(derive_seed(config.seed, "router", 0, 0, "init"), job.cpu):
        model = M3DT(bank.config)
    bank.load_backbone(model)
    for e in bank.finished_experts:
        bank.load_expert(model, e, slot=e)
    start = {}
    if job.start is not None:
        job.start.load_router(model)
        start = {"router at the start": job.start.manifest.files["router.safetensors"].sha256}
    parameters = model.router_tensors()
    yield Run(
        name="router",
        config=config,
        model=model,
        parameters=parameters,
        samplers=(job.sampler(job.data),),
        choice=Routing(min_weight=config.skip_below) if config.skip_below else "mixture",
        built_on=job.built_on("backbone.safetensors", *map(expert_file, bank.finished_experts)) | start,
        public_files=lambda: {"router.safetensors": job.public(parameters)},
        hooks=Concentration(model, config) if config.concentrate else StepHooks(),
    )


class Concentration(StepHooks):
    """Adds the entropy of each window's mean router weights to the loss, in the last part of a run."""

    def __init__(self, model: M3DT, config: RouterConfig) -> None:
        self._share, self._first_step = config.concentrate, config.concentrate_after * config.steps
        self._weights: list[Tensor] = []
        for block in model.blocks:
            block.get_submodule("router").register_forward_hook(self._keep)
        self._step = 0

    def before_forward(self, step: int, batch: Batch) -> None:
        self._step = step
        self._weights.clear()

    def extra_loss(self) -> Tensor | float:
        if self._step < self._first_step:
            return 0.0
        means = (weights.mean(1).clamp_min(_LEAST) for weights in self._weights)  # (B, E)
        entropies = [torch.special.entr(mean).sum(-1).mean() for mean in means]
        return self._share * torch.stack(entropies).mean()

    def _keep(self, _router: nn.Module, _inputs: tuple[Tensor, ...], weights: Tensor) -> None:
        self._weights.append(weights)
