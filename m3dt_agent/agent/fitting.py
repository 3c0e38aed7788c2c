"""The bank that a stage is trained into: opened, copied or made, and checked against the agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bank import ExpertBank, is_bank
from ..bank.builtin import folder_to_write
from ..config import ModelConfig
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, StageError
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
        ConfigError: `data` or the bank holds other tasks than `tasks`, or the bank another model than `config`.
    """
    _require_same_tasks(tasks, data.tasks, "the datasets")
    if isinstance(bank, ExpertBank):
        opened = bank
    elif is_bank(folder_to_write(bank)):
        opened = ExpertBank.open(Path(bank), check="sizes")  # `fit_stage` checks the contents
    elif own is not None:
        opened = own.copy_to(bank)
    elif may_create:
        opened = create_bank(Path(bank), config, data)
    else:
        raise StageError(f"there is no bank at {bank}; run fit_stage('backbone', ...) first, which makes it")
    _require_same_tasks(tasks, opened.tasks, f"the bank {opened.path}")
    if opened.config != config:
        raise ConfigError(f"the bank {opened.path} holds {opened.config}; the agent is {config}")
    return opened


def _require_same_tasks(ours: Sequence[TaskSpec], theirs: Sequence[TaskSpec], what: str) -> None:
    mine, other = [task.name for task in ours], [task.name for task in theirs]
    if mine != other:
        raise ConfigError(f"{what} hold the tasks {', '.join(other)}; the agent has {', '.join(mine)} (the order counts)")
