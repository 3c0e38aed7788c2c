"""What `fit_stage` was asked to do, and what stages make of it: samplers, fingerprints, the bank's copy of trained tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..bank import ExpertBank
from ..config import ModelConfig, TrainConfig
from ..data.batches import BatchSampler
from ..data.prompts import make_prompts
from ..data.stats import compute_statistics
from ..data.task_datasets import TaskDatasets

ConfigT = TypeVar("ConfigT", bound=TrainConfig, covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Job(Generic[ConfigT]):
    """One stage of one bank on one data set. experts: in stage 2, only these; None: all that are missing. start: in stage 3,
    the bank whose router is trained on; None: a new one."""

    data: TaskDatasets
    bank: ExpertBank
    config: ConfigT
    experts: frozenset[int] | None = None
    start: ExpertBank | None = None

    @property
    def cpu(self) -> torch.device:
        """Where models are made, so that their first weights are the same on any device."""
        return torch.device("cpu")

    def sampler(self, data: TaskDatasets, expert: int = 0) -> BatchSampler:
        """Batches of `data` with the bank's statistics and prompts, from the stream of `expert`."""
        config = self.config
        return BatchSampler(
            data,
            self.bank.statistics,
            self.bank.prompts,
            self.bank.config,
            batch_size=config.batch_size,
            tasks_per_batch=config.tasks_per_batch,
            seed=config.seed,
            stage=config.stage,
            expert=expert,
            domain_weights=config.domain_weights,
        )

    def built_on(self, *files: str, groups: Mapping[str, int] | None = None) -> dict[str, str]:
        """Hashes of everything besides the config that decides a run: model shape, data, groups, files of the bank."""
        manifest = self.bank.manifest
        hashes = {"model config": _hash_json(manifest.model.to_dict()), "data": data_fingerprint(self.data)}
        if groups is not None:
            hashes["groups"] = _hash_json(dict(groups))
        names = ("statistics.safetensors", "prompts.safetensors", *files)
        return hashes | {name: manifest.files[name].sha256 for name in names}

    def public(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a bank is given of trained tensors, to store in its way: float32, on the CPU."""
        return {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}


def create_bank(path: Path, config: ModelConfig, data: TaskDatasets) -> ExpertBank:
    """A new bank for the tasks of `data`, with their statistics and prompts.

    Raises:
        BankError, DiskSpaceError: as `ExpertBank.create`.
    """
    prompts = make_prompts(data, config.prompt_length)
    return ExpertBank.create(path, config, data.tasks, compute_statistics(data), prompts, data.config)


def data_fingerprint(data: TaskDatasets) -> str:
    """A hash that differs when the episodes do: lengths, returns and observation statistics of every task, in order."""
    digest = hashlib.sha256()
    for task, packed in zip(data.tasks, data.packed, strict=True):
        digest.update(task.name.encode())
        for array in (packed.offsets, packed.returns, packed.obs_mean, packed.obs_std):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _hash_json(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
