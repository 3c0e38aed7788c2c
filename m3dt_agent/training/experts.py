"""Stage 2: one expert per group of tasks, several stacked in one run; the backbone is frozen and shared.

    experts 0 1 2 │ 3 4 5 │ 6 7        experts_at_once=3: each chunk is finished and in the bank before the next begins

Expert e starts from its own seed, draws from its own stream of its group's data and has its own dropout masks, all keyed by its
index in the bank, so that its training is the same in any chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor

from ..bank import ExpertBank
from ..bank.manifest import expert_file
from ..config import ExpertsConfig, TrainConfig
from ..data.batches import derive_seed
from ..model import M3DT
from ..model.determinism import seeded
from ..model.moe import Experts
from .checkpoint import remove_checkpoints, started_runs
from .run import Run
from .stage_inputs import Job

C = TypeVar("C", bound=TrainConfig)


def runs(job: Job[ExpertsConfig]) -> Iterator[Run]:
    """One run per chunk that is not in the bank yet; made when asked for, so that one chunk is in memory at a time."""
    n_experts = job.bank.config.n_experts
    size = job.config.experts_at_once or n_experts
    wanted = range(n_experts) if job.experts is None else job.experts
    for first in range(0, n_experts, size):
        here = range(first, min(first + size, n_experts))
        chunk = tuple(e for e in here if e in wanted and e not in job.bank.finished_experts)
        if chunk:
            yield chunk_run(job, chunk)


def chunk_run(job: Job[ExpertsConfig], chunk: tuple[int, ...]) -> Run:
    """The run that trains the experts `chunk` (their indices in the bank) stacked, K = len(chunk)."""
    groups = job.bank.groups or {}
    model = M3DT(dataclasses.replace(job.bank.config, n_experts=len(chunk), top_k=None))
    job.bank.load_backbone(model)
    for slot, expert in enumerate(chunk):
        model.load_expert(slot, _new_expert(job, expert))
    members = [[task.name for task in job.data.tasks if groups[task.name] == expert] for expert in chunk]
    return Run(
        name=f"experts-{chunk[0]:03d}-{chunk[-1]:03d}",
        config=job.config,
        model=model,
        parameters=model.expert_tensors(),
        samplers=[job.sampler(job.data.subset(names), e) for e, names in zip(chunk, members, strict=True)],
        choice=tuple(range(len(chunk))),
        built_on=job.built_on("backbone.safetensors", groups=groups),
        public_files=lambda: {expert_file(e): job.public(model.expert_slice(slot)) for slot, e in enumerate(chunk)},
        experts=chunk,
    )


def remove_finished(bank: ExpertBank) -> None:
    """Removes checkpoints of chunks that are in the bank already."""
    for run in started_runs(bank.path, "experts"):
        first = int(run.split("-")[1])
        if first in bank.finished_experts:
            remove_checkpoints(bank.path, run)


def _new_expert(job: Job[ExpertsConfig], expert: int) -> dict[str, Tensor]:
    """An untrained expert of all blocks, the same whatever it is stacked with."""
    config = job.bank.config
    tensors: dict[str, Tensor] = {}
    with seeded(derive_seed(job.config.seed, "experts", expert, 0, "init"), job.cpu):
        for block in range(config.n_layers):
            named = Experts(1, config.embed_dim).named_parameters()
            tensors |= {f"blocks.{block}.experts.{name}": p.detach()[0] for name, p in named}
    return tensors
