"""Stage 1: the backbone, all of it, on all tasks mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ..config import BackboneConfig
from ..data.batches import derive_seed
from ..model import M3DT
from ..model.determinism import seeded
from .conflict import gradient_conflict, task_gradients
from .run import Run
from .stage_inputs import Job


def runs(job: Job[BackboneConfig]) -> Iterator[Run]:
    """The stage's one run."""
    config = job.config
    with seeded(derive_seed(config.seed, "backbone", 0, 0, "init"), job.cpu):
        model = M3DT(dataclasses.replace(job.bank.config, n_experts=0, top_k=None))
    sampler, parameters = job.sampler(job.data), model.backbone_tensors()
    yield Run(
        name="backbone",
        config=config,
        model=model,
        parameters=parameters,
        samplers=(sampler,),
        choice="none",
        built_on=job.built_on(),
        public_files=lambda: {"backbone.safetensors": job.public(parameters)},
        conflict=lambda step: gradient_conflict(lambda: task_gradients(model, parameters, sampler, step)),
    )
