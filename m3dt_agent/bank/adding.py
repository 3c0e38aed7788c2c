"""Tasks that join a trained bank, or an agent: what is known of them, and a bank that has them.

demonstrations ─► added_tasks ─► AddedTasks ─┬► M3DTAgent.learn_task   in memory
                                             └► copy_with_tasks        a new bank, with the weights of the old one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..config import DataConfig, ModelConfig
from ..data.demonstrations import shown
from ..data.prompts import Prompt, prompts_to_tensors
from ..data.stats import TaskStatistics, statistics_to_tensors
from ..data.task_datasets import TaskDatasets
from ..tasks import TaskSpec
from .contents import BankContents
from .copies import copy_bank
from .manifest import require_room
from .sizes import fitting_prompts, fitting_statistics
from .tensor_files import record_of


@dataclass(frozen=True, slots=True, eq=False)
class AddedTasks:
    """Tasks with their statistics and prompts, by name; the best prompt comes first."""

    tasks: tuple[TaskSpec, ...] = ()
    statistics: Mapping[str, TaskStatistics] = field(default_factory=dict)
    prompts: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)

    def __or__(self, later: AddedTasks) -> AddedTasks:
        """These and `later`, which counts where both have a task."""
        names = {task.name for task in later.tasks}
        kept = tuple(task for task in self.tasks if task.name not in names)
        return AddedTasks(kept + later.tasks, {**self.statistics, **later.statistics}, {**self.prompts, **later.prompts})


def added_tasks(data: TaskDatasets, model: ModelConfig, config: DataConfig) -> AddedTasks:
    """What the demonstrations in `data` say of its tasks, made as `config` says, for a model of this shape.

    Raises:
        ConfigError: the model is too narrow for a task, or its longest episode too short.
    """
    for task in data.tasks:
        require_room(task, model)
    statistics, prompts = shown(data, config, model.prompt_length)
    return AddedTasks(data.tasks, fitting_statistics(statistics, data.tasks), dict(fitting_prompts(prompts, data.tasks, model)))


def copy_with_tasks(bank: BankContents, added: AddedTasks, path: Path) -> None:
    """Writes a copy of the bank that has these tasks too, whole or not at all.

    Raises:
        ConfigError: the bank has one of the tasks already.
        BankError: `path` exists and is not an empty folder, or a file of the bank is damaged. DiskSpaceError: no room.
    """
    copy_bank(bank.path, bank.manifest.with_tasks(added.tasks), path, bank.storage, _files(bank, added))


def hash_with_tasks(bank: BankContents, added: AddedTasks) -> str:
    """The content hash of the bank that `copy_with_tasks` writes.

    Raises:
        ConfigError: the bank has one of the tasks already.
    """
    files = {name: record_of(tensors) for name, tensors in _files(bank, added).items()}
    manifest = bank.manifest.with_tasks(added.tasks)
    return dataclasses.replace(manifest, files=manifest.files | files).content_hash


def _files(bank: BankContents, added: AddedTasks) -> dict[str, Mapping[str, Tensor]]:
    names = bank.manifest.tasks
    statistics = {**{name: bank.statistics[name] for name in names}, **added.statistics}
    prompts = {**{name: bank.prompts[name] for name in names}, **added.prompts}
    return {
        "statistics.safetensors": statistics_to_tensors(statistics),
        "prompts.safetensors": prompts_to_tensors(prompts),
    }
