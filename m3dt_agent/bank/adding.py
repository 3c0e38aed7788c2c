"""Tasks that join a trained bank, or an agent: what is known of them, and a bank that has them.

demonstrations ─► added_tasks ─► AddedTasks ─┬► M3DTAgent.learn_task   in memory
                                             └► copy_with_tasks        a new bank, with the weights of the old one
datasets ─► copy_grown                                                 a new bank, with experts that are to be trained
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .. import tasks as task_table
from ..config import DataConfig, ModelConfig
from ..data.demonstrations import shown
from ..data.prompts import Prompt, make_prompts, prompts_to_tensors
from ..data.stats import TaskStatistics, compute_statistics, statistics_to_tensors
from ..data.task_datasets import TaskDatasets
from ..errors import BankError, StageError
from ..tasks import TaskSpec
from .contents import BankContents
from .copies import copy_bank
from .growth import new_growth
from .manifest import Manifest, require_room
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


def copy_grown(bank: BankContents, data: TaskDatasets, n_experts: int, path: Path) -> None:
    """Writes a copy of the bank that has grown by the tasks of `data`, whole or not at all; the new experts have no files yet.

    Raises:
        As `ExpertBank.grown`.
    """
    if untrained := untrained_experts(bank.manifest):
        raise StageError(f"bank {bank.path} has grown, but its experts {untrained} are not trained yet; train them first")
    if data.config != bank.data_config:
        raise BankError(f"bank {bank.path} was made with {bank.data_config}; the data were opened with {data.config}")
    bank.manifest.require_new(data.tasks)
    growth = new_growth(bank.growths, [task.name for task in data.tasks], n_experts, bank.config.n_experts)
    specs = {task.name: task for task in data.tasks if not task_table.is_builtin(task)}
    grown = dataclasses.replace(bank.manifest, grown=(*bank.growths, growth), specs=bank.manifest.specs | specs)
    grown.check_tasks()
    files = {
        growth.statistics_file: statistics_to_tensors(compute_statistics(data)),
        growth.prompts_file: prompts_to_tensors(make_prompts(data, bank.config.prompt_length)),
    }
    copy_bank(bank.path, grown, path, bank.storage, files)


def untrained_experts(manifest: Manifest) -> list[int]:
    """The experts by which the bank has grown that have no file yet."""
    return sorted({expert for growth in manifest.grown for expert in growth.experts} - set(manifest.all_experts))


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
