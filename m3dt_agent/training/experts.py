"""Stage 2: one expert per group of tasks, several stacked in one run; the backbone is frozen and shared.

    experts 0 1 2 │ 3 4 5 │ 6 7        experts_at_once=3: each chunk is trained and in the bank before the next one begins

Every expert has its own initial weights, its own random stream of its group's data and its own dropout masks. All of these
depend on its index in the bank, so that its training is the same in any chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ..bank import ExpertBank
from ..bank.manifest import expert_file
from ..config import ExpertsConfig, ModelConfig, TrainConfig
from ..data.batches import derive_seed
from ..model import M3DT
from ..model.determinism import seeded
from ..model.moe import ExpertStack
from .checkpoint import remove_checkpoints, started_runs
from .run import Run
from .stage_inputs import StageInputs

C = TypeVar("C", bound=TrainConfig)


def runs(inputs: StageInputs[ExpertsConfig]) -> Iterator[Run]:
    """One run per chunk that is not in the bank yet, each made when it is its turn, so that only one is in memory."""
    n_experts = inputs.bank.config.n_experts
    size = inputs.config.experts_at_once or n_experts
    wanted = range(n_experts) if inputs.experts is None else inputs.experts
    for first in range(0, n_experts, size):
        here = range(first, min(first + size, n_experts))
        chunk = tuple(e for e in here if e in wanted and e not in inputs.bank.finished_experts)
        if chunk:
            yield chunk_run(inputs, chunk)


def chunk_run(inputs: StageInputs[ExpertsConfig], chunk: tuple[int, ...]) -> Run:
    """The run that trains the experts `chunk` (indices in the bank) together, K = len(chunk)."""
    groups = inputs.bank.groups or {}
    model = M3DT(dataclasses.replace(inputs.bank.config, n_experts=len(chunk), top_k=None))
    inputs.bank.load_backbone(model)
    for slot, expert in enumerate(chunk):
        model.load_expert(slot, new_expert(inputs.bank.config, inputs.config.seed, expert))
    members = [[task.name for task in inputs.data.tasks if groups[task.name] == expert] for expert in chunk]
    return Run(
        name=f"experts-{chunk[0]:03d}-{chunk[-1]:03d}",
        config=inputs.config,
        model=model,
        parameters=model.expert_tensors(),
        samplers=[inputs.sampler(inputs.data.subset(names), e) for e, names in zip(chunk, members, strict=True)],
        choice=tuple(range(len(chunk))),
        built_on=inputs.built_on("backbone.safetensors", groups=groups),
        public_files=lambda: {expert_file(e): inputs.public(model.expert_slice(slot)) for slot, e in enumerate(chunk)},
        experts=chunk,
    )


def remove_finished(bank: ExpertBank) -> None:
    """Removes the checkpoints of chunks that are in the bank."""
    for run in started_runs(bank.path, "experts"):
        first = run.split("-")[1]
        if first in {f"{expert:03d}" for expert in bank.finished_experts}:
            remove_checkpoints(bank.path, run)


def new_expert(config: ModelConfig, seed: int, expert: int) -> dict[str, Tensor]:
    """An untrained expert for all blocks of a model; it does not depend on the experts it is trained with."""
    tensors: dict[str, Tensor] = {}
    with seeded(derive_seed(seed, "experts", expert, 0, "init"), torch.device("cpu")):
        for block in range(config.n_layers):
            named = ExpertStack(1, config.embed_dim).named_parameters()
            tensors |= {f"blocks.{block}.experts.{name}": p.detach()[0] for name, p in named}
    return tensors
