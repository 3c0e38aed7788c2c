"""What the options of `m3dt train` mean: tasks and places to run."""

from __future__ import annotations

from typing import Any

import pytest

from m3dt_agent.cli.train.request import Spread, TaskChoice
from m3dt_agent.errors import ConfigError
from m3dt_agent.jobs import LocalProcesses

HERE: dict[str, Any] = {"workers": None, "experts_per_job": None, "shard": None, "retries": 3, "data_parallel": None}


def test_where_stages_run() -> None:
    assert Spread.over(None, **HERE) == Spread(None, None, 1)
    local = Spread.over(None, **HERE | {"workers": 2, "shard": "1/4"}).fanout
    assert local is not None
    assert (local.engine, local.experts_per_job, local.shard) == (LocalProcesses(2, 3), None, (1, 4))
    with pytest.raises(ConfigError, match="--data-parallel 2:8 goes with --ray"):
        Spread.over(None, **HERE | {"data_parallel": "2:8"})


def test_tasks_must_be_named_where_there_is_no_bank() -> None:
    assert [task.name for task in TaskChoice(["reach"], all_tasks=False, task_set=None, set_seed=0).of(None)] == ["reach"]
    with pytest.raises(ConfigError, match="no tasks named"):
        TaskChoice(None, all_tasks=False, task_set=None, set_seed=0).of(None)
