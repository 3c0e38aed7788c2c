"""Settings that depend on the machine: the precision "auto" and the number of experts trained at once."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch

from ...config import ExpertsConfig, ModelConfig, TrainConfig
from ...errors import ConfigError
from ...model import faster_precision
from ...model.moe import tile_size

C = TypeVar("C", bound=TrainConfig)


def with_precision(config: C, model: ModelConfig, device: str | torch.device) -> C:
    """`config` with "auto" replaced by the precision in which products of a batch's tokens are faster, as measured now.

    Raises:
        ConfigError: float64 on a device that does not have it.
    """
    if config.precision == "float64" and torch.device(device).type == "mps":
        raise ConfigError("precision 'float64' needs another device: Apple's GPU (mps) does not have it; use device='cpu'")
    if config.precision != "auto":
        return config
    n_tokens = config.batch_size * model.n_tokens
    return dataclasses.replace(config, precision=faster_precision(n_tokens, model.embed_dim, device))


def with_stacking(config: C, model: ModelConfig, device: str | torch.device) -> C:
    """`config` with a number of experts to train at once, if it has none: on a GPU all, on a CPU as many as its cache holds.

    With the paper preset, the cache holds two. On two cores, a step of 2, 4, 8 and 48 stacked experts took 0.91, 0.93, 1.2 and
    1.7 times as long as steps of a plain implementation that trains them one by one (measured by `benchmarks.perf.model`).
    """
    if not isinstance(config, ExpertsConfig) or config.experts_at_once is not None or model.n_experts == 0:
        return config
    size = tile_size(model.n_experts, config.batch_size * model.n_tokens, 4 * model.embed_dim, torch.device(device))
    return dataclasses.replace(config, experts_at_once=size)
