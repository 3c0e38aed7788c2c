"""What trackers are told of training and of evaluations: each run of a stage, and each evaluation, is a run of the tracker.

    logs/tracking.json     what the runs of a bank are called together

A run's config has the settings, the model, the tasks and the hash of the bank that it builds on; its results have the hash of
the bank that it leaves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...bank import ExpertBank
from ...config import TrainConfig
from ...errors import BankError, DiskSpaceError, PathError
from ...model import M3DT
from ...scores import Summary
from ...system.disk import own_path, path_errors, write_file
from ...system.documents import read_document
from ..logs import LogRecord, LogRow, OnLog
from ..run import Run
from .tracker import Guarded, TrackedRun


class TrackedTraining:
    """The trackers of one run of a bank; a context manager, called with every `LogRecord`.

    Args:
        on_log: called with the records too.
    """

    def __init__(self, trackers: Sequence[Guarded], bank: ExpertBank, run: Run, on_log: OnLog | None = None) -> None:
        self._trackers, self._bank, self._run, self._on_log = trackers, bank, run, on_log

    def __enter__(self) -> TrackedTraining:
        self._use = _ExpertUse(self._run.model) if self._trackers and self._run.config.stage == "router" else None
        start_run(self._trackers, self._bank, self._run.name, {"stage": self._run.config.stage, **_plain(self._run.config)})
        return self

    def __call__(self, record: LogRecord) -> None:
        if self._trackers:
            values = values_of(record) | ({} if self._use is None else self._use.values())
            for tracker in self._trackers:
                tracker.log(values, record.step)
        if self._on_log is not None:
            self._on_log(record)

    def __exit__(self, *_: object) -> None:
        if self._use is not None:
            self._use.remove()
        for tracker in self._trackers:
            tracker.finish({"bank": self._bank.content_hash})


def start_run(trackers: Sequence[Guarded], bank: ExpertBank, name: str, config: Mapping[str, Any]) -> None:
    """Starts a run of `bank` for each tracker. config: what is special about the run; the bank's own configuration is added."""
    if trackers:
        own = {"model": bank.config.to_dict(), "data": _plain(bank.data_config), "tasks": list(bank.manifest.tasks)}
        run = TrackedRun(name, _experiment(bank), bank.path / "logs", {**config, **own, "bank": bank.content_hash})
        for tracker in trackers:
            tracker.start(run)


def track_rows(trackers: Sequence[Guarded], bank: ExpertBank, config: TrainConfig, rows: Sequence[LogRow]) -> None:
    """Tells trackers of a stage-2 run that went on elsewhere, from the rows of its log."""
    by_step: dict[int, list[LogRow]] = {}
    for row in rows if trackers else ():
        by_step.setdefault(int(row["step"]), []).append(row)
    if not by_step:
        return
    experts = sorted({int(row["expert"]) for row in rows})
    start_run(trackers, bank, f"experts-{experts[0]:03d}-{experts[-1]:03d}", {"stage": config.stage, **_plain(config)})
    for step in sorted(by_step):
        values = values_of(_record(by_step[step], config))
        for tracker in trackers:
            tracker.log(values, step)
    for tracker in trackers:
        tracker.finish({"bank": bank.content_hash})


def track_scores(trackers: Sequence[Guarded], bank: ExpertBank, summary: Summary, config: Mapping[str, Any]) -> None:
    """Tells trackers of an evaluation, by the names score/<task>, success/<task>, score/mean and score/iqm.

    Args:
        bank: what was evaluated, or what others are compared with. config: how it was evaluated.

    Raises:
        PathError: the bank's logs/ is a symbolic link, which may lead out of the bank.
    """
    values: dict[str, float] = {"score/mean": summary.mean_score, "score/iqm": summary.iqm_score}
    for name, task in summary.tasks.items():
        values[f"score/{name}"] = task.mean_score
        if task.success_rate is not None:
            values[f"success/{name}"] = task.success_rate
    start_run(trackers, bank, f"evaluation-{secrets.token_hex(4)}", {"policy": summary.policy, **config})
    known = {name: value for name, value in values.items() if not math.isnan(value)}  # a mean of no scores
    for tracker in trackers:
        tracker.log(known, 0)
        tracker.finish({"bank": bank.content_hash})


def _record(rows: Sequence[LogRow], config: TrainConfig) -> LogRecord:
    """The record of stage 2 whose rows these are."""
    return LogRecord(
        stage=config.stage,
        step=int(rows[0]["step"]),
        steps=config.steps,
        experts=tuple(int(row["expert"]) for row in rows),
        losses=tuple(float(row["loss"]) for row in rows),
        grad_norms=tuple(float(row["grad_norm"]) for row in rows),
        learning_rate=float(rows[0]["lr"]),
        conflict=None,
        seconds=float(rows[0]["seconds"]),
    )


def values_of(record: LogRecord) -> dict[str, float]:
    """What trackers are told of a record: numbers by name."""
    values = {
        "loss": record.loss,
        "grad_norm": record.grad_norm,
        "learning_rate": record.learning_rate,
        "seconds": record.seconds,
        "conflict": record.conflict,
        "experts_kept": record.experts_kept,
    }
    values |= {f"loss/expert_{e:03d}": loss for e, loss in zip(record.experts, record.losses, strict=False)}
    return {f"{record.stage}/{name}": value for name, value in values.items() if value is not None}


class _ExpertUse:
    """The mean weight that the routers gave each expert in the last batch; what they compute stays as it is."""

    def __init__(self, model: M3DT) -> None:
        self._weights: dict[int, Tensor] = {}  # (B, tokens, E) of each block
        self._hooks = [
            block.get_submodule("router").register_forward_hook(functools.partial(self._keep, i))
            for i, block in enumerate(model.blocks)
        ]

    def values(self) -> dict[str, float]:
        means = torch.stack([weights.float().mean((0, 1)) for weights in self._weights.values()]).mean(0)  # (E,)
        return {f"router/use/expert_{e:03d}": share for e, share in enumerate(means.tolist())}

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, block: int, _router: nn.Module, _inputs: tuple[Tensor, ...], weights: Tensor) -> None:
        self._weights[block] = weights.detach()


@dataclass(frozen=True, slots=True)
class _Named:
    """The content of `logs/tracking.json`."""

    experiment: str


def _experiment(bank: ExpertBank) -> str:
    """What the runs of this bank are called together. It is kept with the logs, so that a bank made anew has another."""
    path = own_path(bank.path, "logs/tracking.json")
    try:
        return read_document(path, _Named, BankError).experiment
    except BankError:  # there is none, or it is damaged
        name = f"{bank.path.resolve().name}-{secrets.token_hex(4)}"
    with contextlib.suppress(DiskSpaceError, PathError), path_errors(path):  # of a bank that can only be read
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"experiment": name}))
    return name


def _plain(config: Any) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in dataclasses.asdict(config).items()}
