"""The precision of a run that asked for "auto"."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch

from ..config import ModelConfig, TrainConfig
from ..model import faster_precision

C = TypeVar("C", bound=TrainConfig)


def with_precision(config: C, model: ModelConfig, device: str | torch.device) -> C:
    """`config` with `precision` settled: "auto" becomes what products of a batch's tokens are faster in, measured now."""
    if config.precision != "auto":
        return config
    n_tokens = config.batch_size * model.n_tokens
    return dataclasses.replace(config, precision=faster_precision(n_tokens, model.embed_dim, device))
