"""Stage 3: the routers alone, on all tasks mixed; backbone and experts are frozen."""

from __future__ import annotations

from collections.abc import Iterator

from ..bank_files import expert_file
from ..config import RouterConfig
from ..data.batches import derive_seed
from ..model import M3DT
from .job import Job
from .loop import Run, seeded


def runs(job: Job[RouterConfig]) -> Iterator[Run]:
    """The stage's one run."""
    bank, config = job.bank, job.config
    with seeded(derive_seed(config.seed, "router", 0, 0, "init"), job.cpu):
        model = M3DT(bank.config)
    bank.load_backbone(model)
    for e in bank.finished_experts:
        bank.load_expert(model, e, slot=e)
    parameters = model.router_tensors()
    yield Run(
        name="router",
        config=config,
        model=model,
        parameters=parameters,
        samplers=(job.sampler(job.data),),
        choice="mixture",
        built_on=job.built_on("backbone.safetensors", *map(expert_file, bank.finished_experts)),
        public_files=lambda: {"router.safetensors": job.public(parameters)},
    )
