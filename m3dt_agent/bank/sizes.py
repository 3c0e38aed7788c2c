"""What a bank's files must weigh, counted before anything of them is read and before a model is built.

bank.json: ModelConfig ─► tensors of each file, without memory ("meta") ─► bytes = header + elements × bytes of the storage
bank.json: files       ─► recorded bytes, which `ExpertBank.open` has compared with the files themselves
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..config import ModelConfig
from ..data.prompts import Prompt
from ..data.stats import TaskStatistics
from ..errors import BankError, ShapeError
from ..tasks import TaskSpec
from .manifest import Manifest, expert_file
from .storage import Storage
from .tensor_files import MAX_HEADER_BYTES, FileRecord, require_memory

_BYTES: dict[Storage, int] = {"float32": 4, "bfloat16": 2}


def element_counts(config: ModelConfig) -> dict[str, int]:
    """Numbers in the backbone, in all experts together, and in the router, of a model that is never built."""
    one, two = (_counted(dataclasses.replace(config, n_layers=n)) for n in (1, 2))  # every block is alike
    return {name: one[name] + (config.n_layers - 1) * (two[name] - one[name]) for name in one}


@functools.lru_cache(maxsize=8)
def _counted(config: ModelConfig) -> dict[str, int]:
    from ..model import M3DT

    with torch.device("meta"):
        model = M3DT(config)
    parts = {"backbone": model.backbone_tensors(), "experts": model.expert_tensors(), "router": model.router_tensors()}
    return {name: sum(tensor.numel() for tensor in tensors.values()) for name, tensors in parts.items()}


def require_fit(manifest: Manifest, config: ModelConfig, path: Path) -> None:
    """Checks that the files of weights have the sizes that `config` says, and that the model fits into the machine's memory.

    config: the bank's, or the same without experts.

    Raises:
        BankError: a file is of another model, or the model is too large for this machine.
    """
    counts = element_counts(config)
    for name, record in manifest.files.items():
        part, _, number = name.removesuffix(".safetensors").partition("/")
        if part not in counts or (part != "backbone" and config.n_experts == 0):
            continue
        if part == "experts" and int(number) >= config.n_experts:
            continue  # of a growth
        elements = counts[part] // config.n_experts if part == "experts" else counts[part]
        _require_size(path / name, record, elements, manifest.storage)
    require_memory(4 * sum(counts.values()), f"the model of bank {path}")


def expert_config(manifest: Manifest, expert: int) -> ModelConfig:
    """The shape of the model of an expert by which the bank has grown: wide and long enough for the expert's tasks.

    Raises:
        KeyError: no growth has this expert.
    """
    members = {e: growth.members(e) for growth in manifest.grown for e in growth.experts}[expert]
    return dataclasses.replace(manifest.model.for_tasks(map(manifest.task, members)), n_experts=1, top_k=None)


def require_expert_fits(manifest: Manifest, expert: int, path: Path) -> None:
    """Checks that the file of an expert by which the bank has grown has the size that its tasks say.

    Raises:
        BankError: it is of another model, or the model is too large for this machine.
    """
    config = expert_config(manifest, expert)
    narrow = dataclasses.replace(manifest.model, n_experts=0, top_k=None)
    counts = element_counts(config)
    elements = counts["experts"] + counts["backbone"] - element_counts(narrow)["backbone"]
    name = expert_file(expert)
    _require_size(path / name, manifest.files[name], elements, manifest.storage)
    require_memory(4 * (counts["experts"] + counts["backbone"]), f"expert {expert} of bank {path}")


def _require_size(file: Path, record: FileRecord, elements: int, storage: Storage) -> None:
    data = elements * _BYTES[storage]
    if not data + 8 < record.bytes <= data + 8 + MAX_HEADER_BYTES:
        raise BankError(
            f"{file} does not fit this bank's model: it has {record.bytes:,} bytes, and the {elements:,} numbers of "
            f"the model in bank.json take {data:,} and a header"
        )


def fitting_statistics(found: dict[str, TaskStatistics], tasks: Iterable[TaskSpec]) -> dict[str, TaskStatistics]:
    """The statistics, if each is as wide as the observations of its task.

    Raises:
        ShapeError: one is not; the message names the task.
    """
    for task in tasks:
        if task.name in found and found[task.name].mean.shape != (task.obs_dim,):
            raise ShapeError(f"task {task.name!r} has observations of {task.obs_dim}; got {found[task.name].mean.shape}")
    return found


def fitting_prompts(
    found: Mapping[str, tuple[Prompt, ...]], tasks: Iterable[TaskSpec], config: ModelConfig
) -> Mapping[str, tuple[Prompt, ...]]:
    """The prompts, if each has the widths of its task, and the model can take its length and timesteps.

    Raises:
        ShapeError: one does not fit; the message names the task.
    """
    for task in tasks:
        for prompt in found.get(task.name, ()):
            widths, steps = (prompt.states.shape[1], prompt.actions.shape[1]), prompt.timesteps
            if widths != (task.obs_dim, task.act_dim):
                raise ShapeError(f"a prompt of task {task.name!r} must be {task.obs_dim} + {task.act_dim} wide; got {widths}")
            if len(steps) > config.prompt_length:
                raise ShapeError(f"a prompt of task {task.name!r} has {len(steps)} steps; {config.prompt_length} are possible")
            if steps.min() < 0 or steps.max() >= config.max_timesteps:
                raise ShapeError(f"a prompt of task {task.name!r} has timesteps outside [0, {config.max_timesteps})")
    return found
