"""What one stage trains on (`StageInputs`), new banks, and the check that data and bank belong together."""

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
from ..config.checks import require_instance
from ..data.batches import BatchSampler
from ..data.prompts import make_prompts
from ..data.stats import compute_statistics
from ..data.task_datasets import TaskDatasets
from ..errors import BankError, StageError

ConfigT = TypeVar("ConfigT", bound=TrainConfig, covariant=True)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StageInputs(Generic[ConfigT]):
    """One stage of a bank, its data and its config.

    experts: train only these in stage 2; None: all that are missing. start: the bank whose router stage 3 starts from; None: a
    new router.
    """

    data: TaskDatasets
    bank: ExpertBank
    config: ConfigT
    experts: frozenset[int] | None = None
    start: ExpertBank | None = None

    @property
    def cpu(self) -> torch.device:
        """Where new models are made, so that their first weights do not depend on the device that trains them."""
        return torch.device("cpu")

    def sampler(self, data: TaskDatasets, expert: int = 0) -> BatchSampler:
        """Batches of `data` with the bank's statistics and prompts, from the random stream of `expert`."""
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
            truncate_history=config.truncate_history,
            labels=config.labels,
        )

    def built_on(self, *files: str, groups: Mapping[str, int] | None = None) -> dict[str, str]:
        """Hashes of what a run's result depends on besides its config: model shape, data, groups, and `files` of the bank."""
        manifest = self.bank.manifest
        hashes = {"model config": hash_json(manifest.model.to_dict()), "data": data_fingerprint(self.data)}
        if groups is not None:
            hashes["groups"] = hash_json(dict(groups))
        names = ("statistics.safetensors", "prompts.safetensors", *files)
        return hashes | {name: manifest.files[name].sha256 for name in names}

    def public(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Trained tensors as a bank's `commit` takes them: float32, on the CPU."""
        return {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}


def create_bank(path: Path, config: ModelConfig, data: TaskDatasets) -> ExpertBank:
    """A new bank for the tasks of `data`, with their statistics and prompts.

    Raises:
        BankError, DiskSpaceError: as `ExpertBank.create`.
    """
    prompts = make_prompts(data, config.prompt_length)
    return ExpertBank.create(path, config, data.tasks, compute_statistics(data), prompts, data.config)


def check_data(data: TaskDatasets, bank: ExpertBank) -> None:
    """Checks that `data` has the bank's tasks, in its order, and was opened with its DataConfig.

    Raises:
        BankError: it does not; the message names both sides. ConfigError: they are something else.
        StageError: the bank has grown.
    """
    require_instance("data", data, TaskDatasets)
    require_instance("bank", bank, ExpertBank)
    require_ungrown(bank)
    found, wanted = tuple(task.name for task in data.tasks), bank.manifest.tasks
    if found != wanted:
        differ = f"only in the data: {sorted(set(found) - set(wanted))}, only in the bank: {sorted(set(wanted) - set(found))}"
        what = differ if set(found) != set(wanted) else f"in another order: data {list(found)}, bank {list(wanted)}"
        raise BankError(f"bank {bank.path} was made for other tasks than the data's; {what}")
    if data.config != bank.data_config:
        raise BankError(f"bank {bank.path} was made with {bank.data_config}; the data were opened with {data.config}")


def require_ungrown(bank: ExpertBank) -> None:
    """Checks that a stage of the bank may be trained.

    Raises:
        StageError: it has grown.
    """
    if bank.growths:
        raise StageError(
            f"bank {bank.path} has grown, so its stages are as they are; train the bank without growth "
            "(bank.without_growth(path)), and let that grow"
        )


def require_trained_tasks(bank: ExpertBank) -> None:
    """Checks that the bank has no task that was only shown to it: backbone and experts would be trained without its data.

    Raises:
        StageError: it has; the message names them.
    """
    if names := ", ".join(bank.manifest.shown):
        raise StageError(
            f"bank {bank.path} was only shown {names}, by demonstrations; train the bank it was made of, or grow that one"
        )


def data_fingerprint(data: TaskDatasets) -> str:
    """A hash of the episodes: of every task's lengths, returns and observation statistics, in order."""
    digest = hashlib.sha256()
    for task, packed in zip(data.tasks, data.packed, strict=True):
        digest.update(task.name.encode())
        for array in (packed.offsets, packed.returns, packed.obs_mean, packed.obs_std):
            digest.update(np.ascontiguousarray(array).tobytes())
        if packed.labelled:
            digest.update(b"labelled")
    return digest.hexdigest()


def hash_json(value: Mapping[str, object]) -> str:
    """sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
