"""What `fit_stage` settles and checks before it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ...bank import ExpertBank
from ...config import Stage, TrainConfig
from ...config.checks import is_integer
from ...data.task_datasets import TaskDatasets
from ...errors import BankError, ConfigError, StageError
from ..distributed import World
from ..experts import remove_finished
from ..logs import announce
from ..stage_inputs import data_fingerprint
from .cost import estimate, require_disk
from .resume import Settings, recorded_settings, settle


class Plan(NamedTuple):
    """What a stage runs with.

    config: None if nothing is left to do. threads: torch's, part of the result.
    recorded: the settings with which it was started before; None if this is its first start.
    experts: in stage 2 those to train; None: all that are missing.
    """

    config: TrainConfig | None
    threads: int
    recorded: Settings | None
    experts: frozenset[int] | None


def plan_stage(
    stage: Stage,
    data: TaskDatasets,
    bank: ExpertBank,
    config: TrainConfig | None,
    *,
    experts: Sequence[int] | None,
    device: torch.device,
    progress: bool | None,
    world: World,
) -> Plan:
    """Settles what a stage runs with, checks that it can, and announces what it will cost. Arguments as of `fit_stage`.

    The caller holds the bank's training lock.

    Raises:
        StageError, ConfigError, BankError, DiskSpaceError: as `fit_stage`.
    """
    _check_order(stage, bank)
    only = _checked_experts(experts, stage, bank)
    remove_finished(bank)
    recorded = recorded_settings(bank, stage)
    config, threads = settle(config, recorded, bank, stage, device)
    rows = world.rows(config.batch_size)
    if _is_finished(stage, bank, config, recorded, data) or (only is not None and only <= set(bank.finished_experts)):
        announce(f"{stage} stage of {bank.path} is finished already ({config.steps:,} steps); nothing to do", progress)
        return Plan(None, threads, recorded, only)
    require_disk(stage, config, bank.config, bank.path)
    if progress is not False:
        own = dataclasses.replace(config, threads=threads)
        if world.size > 1:
            own = dataclasses.replace(own, batch_size=len(rows), tasks_per_batch=None)
        cost = estimate(stage, own, bank.config, device=device, prompts=data.config.n_prompts * len(data.tasks))
        shared = f", on each of {world.size} workers, without the time they wait for each other" if world.size > 1 else ""
        announce(f"{cost}{shared}", progress)
    return Plan(config, threads, recorded, only)


def _check_order(stage: Stage, bank: ExpertBank) -> None:
    """Checks that what the stage builds on is in the bank."""
    if stage == "backbone":
        return
    if bank.config.n_experts == 0:
        raise ConfigError(f"bank {bank.path} has n_experts=0: it has no {stage} stage")
    if bank.status("backbone") != "done":
        raise StageError(
            f"the {stage} stage builds on the backbone; bank {bank.path} has none yet; run fit_stage('backbone', ...) first"
        )
    missing = sorted(set(range(bank.config.n_experts)) - set(bank.finished_experts))
    if stage == "router" and missing:
        raise StageError(
            f"the router stage builds on all experts; bank {bank.path} lacks {missing}; run fit_stage('experts', ...) first"
        )


def _checked_experts(chosen: Sequence[int] | None, stage: Stage, bank: ExpertBank) -> frozenset[int] | None:
    if chosen is None:
        return None
    if stage != "experts":
        raise ConfigError(f"experts={chosen!r} goes with stage 'experts'; got stage {stage!r}")
    numbers = list(chosen) if isinstance(chosen, Iterable) else []
    if not numbers or any(not is_integer(e) or not 0 <= e < bank.config.n_experts for e in numbers):
        raise ConfigError(f"experts must be some of 0 … {bank.config.n_experts - 1}, in a list; got {chosen!r}")
    return frozenset(map(int, numbers))


def _is_finished(stage: Stage, bank: ExpertBank, config: TrainConfig, recorded: Settings | None, data: TaskDatasets) -> bool:
    """Whether the stage has all the steps of `config`; if it needs more, checks that it can be trained further."""
    done = bank.status(stage) == "done"
    public = bank.manifest.stages.get(stage)
    if recorded is None or public is None:
        return done
    fingerprint = data_fingerprint(data)
    if recorded.data != fingerprint:
        raise BankError(
            f"the {stage} stage of bank {bank.path} was trained on data {recorded.data[:12]}; "
            f"the data given are {fingerprint[:12]}"
        )
    reached = public["config"]["steps"]
    if config.steps <= reached:
        return done
    if stage == "backbone" and bank.finished_experts:
        raise StageError(
            f"experts {list(bank.finished_experts)} of bank {bank.path} were trained on its backbone, "
            "so the backbone cannot be trained further"
        )
    if stage == "experts" or recorded.run is None:
        raise StageError(
            f"the {stage} stage of bank {bank.path} ended after {reached:,} steps, and no checkpoint is left from which it "
            f"could continue to {config.steps:,}; train another bank"
        )
    return False
