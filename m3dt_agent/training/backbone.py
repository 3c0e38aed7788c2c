"""Stage 1: the whole backbone, on batches that mix all tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import nn

from ..config import BackboneConfig
from ..data.batches import derive_seed
from ..model import M3DT
from ..model.determinism import seeded
from ..model.moe import INIT_STD
from .conflict import gradient_conflict, task_gradients
from .run import Run
from .stage_inputs import StageInputs


def runs(inputs: StageInputs[BackboneConfig]) -> Iterator[Run]:
    """The stage's one run."""
    config = inputs.config
    with seeded(derive_seed(config.seed, "backbone", 0, 0, "init"), inputs.cpu):
        model = M3DT(dataclasses.replace(inputs.bank.config, n_experts=0, top_k=None))
        _scale_weights(model, config)
    sampler, parameters = inputs.sampler(inputs.data), model.backbone_tensors()
    yield Run(
        name="backbone",
        config=config,
        model=model,
        parameters=parameters,
        samplers=(sampler,),
        choice="none",
        built_on=inputs.built_on(),
        public_files=lambda: {"backbone.safetensors": inputs.public(parameters)},
        conflict=lambda step: gradient_conflict(lambda: task_gradients(model, parameters, sampler, step)),
    )


def _scale_weights(model: M3DT, config: BackboneConfig) -> None:
    """Gives initial weights the standard deviations of `config`; the others keep theirs."""
    embeddings = [layer for embedding in (model.embed, model.embed_prompt) for layer in (embedding.state, embedding.action)]
    blocks = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    for layers, std in ((embeddings, config.embedding_std), (blocks, config.block_std)):
        for layer in layers:
            layer.weight.data *= std / INIT_STD
