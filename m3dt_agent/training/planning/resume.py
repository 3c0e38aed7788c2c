"""How a stage continues: with the settings it was started with, on what it was started on.

A run's settings are in its checkpoints until it ends, then in `bank.json`. A stage that is continued must be given the same
settings; a field that differs is an error that names it. Only `steps` may grow, and `log_every` and `checkpoint_every` may
change, since they change no weight. `threads=None`, `experts_at_once=None` and `precision="auto"` mean the recorded values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...bank import ExpertBank
from ...config import STAGE_CONFIGS, ExpertsConfig, ModelConfig, Stage, TrainConfig, from_dict, train_preset
from ...errors import BankError, ConfigError, StageError
from ..checkpoint import newest_checkpoint, started_runs
from .settling import with_precision, with_stacking

FREE_FIELDS = ("log_every", "checkpoint_every")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a stage was started.

    data: fingerprint of the data it was trained on. run: its unfinished run, or None. built_on: what that run builds on.
    """

    config: dict[str, Any]
    threads: int
    data: str
    run: str | None
    built_on: Mapping[str, str]


def recorded_settings(bank: ExpertBank, stage: Stage) -> Settings | None:
    """The settings of the stage's unfinished run, else of the stage if (some of) it is in the bank, else None.

    Raises:
        BankError: all checkpoints of the unfinished run are damaged.
    """
    for run in started_runs(bank.path, stage):
        checkpoint, _ = newest_checkpoint(bank.path, run)
        if checkpoint is not None:
            state = checkpoint.state
            return Settings(
                config=state.config, threads=state.threads, data=state.built_on["data"], run=run, built_on=state.built_on
            )
    if (record := bank.manifest.stages.get(stage)) is not None:
        return Settings(config=record["config"], threads=record["threads"], data=record["data"], run=None, built_on={})
    return None


def settle(
    config: TrainConfig | None, recorded: Settings | None, bank: ExpertBank, stage: Stage, device: str | torch.device
) -> tuple[TrainConfig, int]:
    """The config and thread count that a stage runs with: the given config if it agrees with the recorded one, else an error.

    Without a given config it is the recorded one; without either, the training preset that goes with the bank's model.

    Raises:
        ConfigError: another stage's config, or fields that differ from the recorded ones.
    """
    if config is not None and getattr(type(config), "stage", None) != stage:
        raise ConfigError(f"stage {stage!r} takes a {STAGE_CONFIGS[stage].__name__}; got {type(config).__name__}")
    if recorded is None:
        asked = config or train_preset(preset_of(bank.config), stage)
        config = with_precision(with_stacking(asked, bank.config, device), bank.config, device)
        return config, config.threads or torch.get_num_threads()
    before = from_dict(STAGE_CONFIGS[stage], recorded.config)
    if config is None:
        return before, recorded.threads
    if isinstance(config, ExpertsConfig) and isinstance(before, ExpertsConfig) and config.experts_at_once is None:
        config = dataclasses.replace(config, experts_at_once=before.experts_at_once)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision=before.precision)
    _check_unchanged(config, before, recorded.threads, f"stage {stage!r} of bank {bank.path}")
    return config, recorded.threads


def config_of_bank(bank: ExpertBank, stage: Stage) -> TrainConfig:
    """The config that a stage of the bank goes on with, or begins with, if none is given."""
    recorded = recorded_settings(bank, stage)
    return train_preset(preset_of(bank.config), stage) if recorded is None else from_dict(STAGE_CONFIGS[stage], recorded.config)


def preset_of(config: ModelConfig) -> str:
    """The preset with the width and depth of a model; `paper` if there is none."""
    for name in ("tiny", "quick", "small"):
        preset = ModelConfig.preset(name)
        if (preset.embed_dim, preset.n_layers) == (config.embed_dim, config.n_layers):
            return name
    return "paper"


def _check_unchanged(config: TrainConfig, before: TrainConfig, threads: int, where: str) -> None:
    differ = []
    for field in dataclasses.fields(config):
        old, new = getattr(before, field.name), getattr(config, field.name)
        if field.name == "threads":
            old, new = threads, threads if new is None else new
        grown = field.name == "steps" and new > old
        if new != old and not grown and field.name not in FREE_FIELDS:
            differ.append(f"{field.name} {old!r} → {new!r}")
    if differ:
        raise ConfigError(
            f"{where} was started with other settings: {', '.join(differ)}; continue with those it was started with "
            f"(only steps may grow), or train another bank"
        )


def check_continuable(recorded: Settings, run: str, built_on: Mapping[str, str], bank: ExpertBank) -> None:
    """Checks that a stage's unfinished run can continue as `run`, on the data and weights that it was started on.

    Raises:
        BankError: these have changed; the message names what, with both hashes.
        StageError: the unfinished run is another one.
    """
    if recorded.run is None:
        return
    if recorded.run != run:
        raise StageError(f"bank {bank.path} has an unfinished run {recorded.run!r}, not {run!r}; remove it from resume/")
    differ = {key for key in {*built_on, *recorded.built_on} if built_on.get(key) != recorded.built_on.get(key)}
    if differ:
        found = "; ".join(
            f"{key} was {recorded.built_on.get(key, 'absent')[:12]}, is {built_on.get(key, 'absent')[:12]}"
            for key in sorted(differ)
        )
        raise BankError(f"run {run!r} of bank {bank.path} was started on something else ({found}), so it cannot continue")
