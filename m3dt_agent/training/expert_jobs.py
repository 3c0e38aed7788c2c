"""Stage 2 as independent jobs: each trains some of the experts in a bank of its own, and the driver collects them.

    <bank>/resume/jobs/<first>-<last>/     a job's own bank: statistics, prompts, backbone, groups; its checkpoints and logs
      ─► expert files, with their hashes ─► the driver ─► experts/000.safetensors … and bank.json

A job that was killed continues from its own checkpoints, on whatever node it is tried again, if all nodes see the bank's
folder; otherwise it begins again. The experts are those that one process would train, to the last bit, as long as the same
experts are trained together (`experts_at_once`) with the same number of threads. Both are settled before jobs are sent.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..bank import ExpertBank, is_bank
from ..bank.manifest import expert_file
from ..bank.shipped import ShippedBank, node_folder, ship
from ..bank.tensor_files import FileRecord, read_content, received_tensors
from ..config import ExpertsConfig
from ..config.checks import is_integer
from ..data.task_datasets import TaskDatasets
from ..errors import BankError, ConfigError
from ..jobs import Engine, opened, run_jobs, shard_of
from ..system.disk import file_lock
from ..system.machine import is_quiet, shows_progress
from .logs import LogRecord, LogRow, add_rows, log_file, read_log
from .stage_inputs import StageInputs

_REPORT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Fanout:
    """How stage 2 is split into jobs, and where they run.

    experts_per_job: None: as many as one process trains at once. shard: (I, N) does only every N-th job from the I-th on, for
    an array of processes that share the work and the bank's folder.
    """

    engine: Engine
    experts_per_job: int | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.experts_per_job is not None and not (is_integer(self.experts_per_job) and self.experts_per_job >= 1):
            raise ConfigError(f"experts_per_job must be None or an integer >= 1; got {self.experts_per_job!r}")


@dataclass(frozen=True, slots=True)
class TrainedExperts:
    """The result of a job: files for the bank, their records, and the rows of its log."""

    files: dict[str, npt.NDArray[np.uint8]]
    records: dict[str, FileRecord]
    rows: list[LogRow]


@dataclass(frozen=True, slots=True)
class ExpertsJob:
    """Trains `experts`.

    bank: what a job's own bank is copied from.
    home: the folder of the driver's bank. If this node sees it, the job works inside it, else in a folder of the node.
    data: opens the datasets.
    fit_stage: `training.fit_stage`. The caller passes it in because fit.py imports this file; it is pickled by name.
    """

    bank: ShippedBank
    home: Path
    data: Callable[[], TaskDatasets]
    config: ExpertsConfig
    experts: tuple[int, ...]
    device: str
    fit_stage: Callable[..., None]

    @property
    def name(self) -> str:
        """What the job is called in messages."""
        return f"experts {_span(self.experts)} of {self.home}"

    def __call__(self) -> TrainedExperts:
        """Trains the experts, from where an earlier attempt ended."""
        folder = self._folder()
        with file_lock(folder.with_name(f"{folder.name}.lock")):  # an earlier attempt may still be ending
            bank = self._own_bank(folder)
            self.fit_stage(
                "experts",
                self.data(),
                bank,
                self.config,
                experts=self.experts,
                device=self.device,
                progress=False,
                on_log=_Reporter(self.name),
            )
            bank.refresh(check="sizes")  # `read_content` checks the contents
            records = {name: bank.manifest.files[name] for name in map(expert_file, self.experts)}
            files = {name: read_content(folder / name, record) for name, record in records.items()}
            return TrainedExperts(files, records, read_log(log_file(folder, "experts")))

    def _folder(self) -> Path:
        shared = is_bank(self.home)
        parent = job_folders(self.home) if shared else node_folder() / f"jobs-{self.bank.key}"
        return parent / _span(self.experts)

    def _own_bank(self, folder: Path) -> ExpertBank:
        """The job's bank in `folder`: that of an earlier attempt if it was copied from the same bank, else a new copy."""
        base = self.bank.open(check="sizes")  # `copy_to` checks the contents
        if is_bank(folder):
            bank = ExpertBank.open(folder, check="sizes")  # `fit_stage` checks the contents
            if bank.manifest.with_experts(()).files == base.manifest.files and bank.groups == base.groups:
                return bank
            shutil.rmtree(folder)
        return base.copy_to(folder)


class _Reporter:
    """Prints now and then how far a job is, on stderr, which both engines forward to the driver's terminal."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, time.monotonic()

    def __call__(self, record: LogRecord) -> None:
        if not is_quiet() and time.monotonic() - self._last >= _REPORT_SECONDS:
            self._last = time.monotonic()
            tqdm.write(f"{self._name}: step {record.step:,} of {record.steps:,}, loss {record.loss:.4f}", file=sys.stderr)


def train_in_jobs(
    inputs: StageInputs[ExpertsConfig],
    threads: int,
    fanout: Fanout,
    device: str,
    progress: bool | None,
    fit_stage: Callable[..., None],
) -> Iterator[TrainedExperts]:
    """Runs the jobs of the stage and yields the result of each as soon as it ends.

    Args:
        fit_stage: `training.fit_stage`, which every job calls.

    Raises:
        ConfigError: datasets that no other process can open. Else as `jobs.run_jobs`.
    """
    if inputs.data.reopen is None:
        raise ConfigError("these datasets were made in memory; only those of TaskDatasets.open can be sent to jobs")
    config = dataclasses.replace(inputs.config, threads=threads)
    chosen = _spans(inputs, fanout)
    hidden = not shows_progress(progress)
    with opened(fanout.engine), tqdm(total=sum(map(len, chosen)), unit="expert", desc="experts", disable=hidden) as bar:
        shipped = ship(inputs.bank, fanout.engine, experts=())
        home = inputs.bank.path.absolute()
        jobs = [
            ExpertsJob(
                bank=shipped,
                home=home,
                data=inputs.data.reopen,
                config=config,
                experts=experts,
                device=device,
                fit_stage=fit_stage,
            )
            for experts in chosen
        ]
        for number, trained in run_jobs(jobs, fanout.engine):
            bar.update(len(chosen[number]))
            yield trained


def commit_trained(bank: ExpertBank, trained: TrainedExperts, record: dict[str, object]) -> None:
    """Writes a job's experts into `bank`, which may have got other experts meanwhile, and removes the job's folder.

    Raises:
        BankError: the files were damaged on their way, or the bank's backbone is not the one that they were trained on.
    """
    tensors = {
        name: received_tensors(content, trained.records[name], bank.path / name) for name, content in trained.files.items()
    }
    backbone = bank.manifest.files["backbone.safetensors"]
    with file_lock(bank.path / "resume" / ".commit"):
        bank.refresh(check="sizes")  # hashing all experts each time would cost more than training them
        if bank.manifest.files["backbone.safetensors"] != backbone:
            raise BankError(f"the backbone of bank {bank.path} changed while {', '.join(sorted(tensors))} were trained on it")
        bank.commit(tensors, stages=bank.manifest.stages | {"experts": record})
        add_rows(log_file(bank.path, "experts"), trained.rows)
    remove_finished_jobs(bank)


def remove_finished_jobs(bank: ExpertBank) -> None:
    """Removes the folders of jobs whose experts are all in the bank."""
    for folder in job_folders(bank.path).glob("*-*/"):
        if not (span := re.fullmatch("([0-9]{3,6})-([0-9]{3,6})", folder.name)):
            continue  # somebody else's
        first, last = map(int, span.groups())
        if {*range(first, last + 1)} <= set(bank.finished_experts):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def job_folders(bank: Path) -> Path:
    """The folder in which the jobs of a bank work."""
    return bank / "resume" / "jobs"


def _spans(inputs: StageInputs[ExpertsConfig], fanout: Fanout) -> list[tuple[int, ...]]:
    """The experts of each job of the shard that has experts left to train."""
    n_experts = inputs.bank.config.n_experts
    size = fanout.experts_per_job or inputs.config.experts_at_once or n_experts
    wanted = (set(range(n_experts)) if inputs.experts is None else inputs.experts) - set(inputs.bank.finished_experts)
    firsts = shard_of(range(0, n_experts, size), fanout.shard)
    spans = [tuple(e for e in range(first, min(first + size, n_experts)) if e in wanted) for first in firsts]
    return [span for span in spans if span]


def _span(experts: Sequence[int]) -> str:
    return f"{experts[0]:03d}-{experts[-1]:03d}"
