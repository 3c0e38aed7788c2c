"""The bank that a stage is trained into: opened, copied or made, and checked against the agent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..bank import ExpertBank, is_bank
from ..bank.builtin import folder_to_write
from ..config import ModelConfig
from ..config.checks import require_instance
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, StageError
from ..system.disk import user_path
from ..tasks import TaskSpec
from ..training.stage_inputs import create_bank


def bank_to_fit(
    bank: str | Path | ExpertBank,
    *,
    own: ExpertBank | None,
    config: ModelConfig,
    tasks: Sequence[TaskSpec],
    data: TaskDatasets,
    may_create: bool,
) -> ExpertBank:
    """The bank at `bank`; if there is none, a copy of the agent's `own`, or a new one from `data` if it may be created.

    Raises:
        StageError: there is no bank, and none may be created.
        ConfigError: `data` or the bank holds other tasks than `tasks`, the bank another model than `config`, or they are of
            other types.
    """
    require_instance("data", data, TaskDatasets)
    require_instance("bank", bank, str | os.PathLike | ExpertBank)
    _require_same_tasks(tasks, data.tasks, "the datasets")
    if isinstance(bank, ExpertBank):
        opened = bank
    elif is_bank(folder := user_path(folder_to_write(bank))):
        opened = ExpertBank.open(folder, check="sizes")  # `fit_stage` checks the contents
    elif own is not None:
        opened = own.copy_to(folder)
    elif may_create:
        opened = create_bank(folder, config, data)
    else:
        raise StageError(f"there is no bank at {bank}; run fit_stage('backbone', ...) first, which makes it")
    _require_same_tasks(tasks, opened.tasks, f"the bank {opened.path}")
    if opened.config != config:
        raise ConfigError(f"the bank {opened.path} holds {opened.config}; the agent is {config}")
    return opened


def _require_same_tasks(ours: Sequence[TaskSpec], theirs: Sequence[TaskSpec], what: str) -> None:
    mine, other = [task.name for task in ours], [task.name for task in theirs]
    if mine == other and list(ours) != list(theirs):
        differ = next(task.name for task, theirs_one in zip(ours, theirs, strict=True) if task != theirs_one)
        raise ConfigError(f"{what} hold another task of the name {differ!r} than the agent: their specs differ")
    if mine != other:
        raise ConfigError(f"{what} hold the tasks {', '.join(other)}; the agent has {', '.join(mine)} (the order counts)")
