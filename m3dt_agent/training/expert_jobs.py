"""Stage 2 as independent jobs: each trains some of the experts in a bank of its own, and one process writes them all down.

    <bank>/resume/jobs/<first>-<last>/     a job's own bank: statistics, prompts, backbone, groups; its checkpoints and logs
      ─► expert files, with their hashes ─► the driver ─► experts/000.safetensors … and bank.json

A job that was killed continues from its own checkpoints, wherever the next attempt runs, if the bank's folder is one that all
nodes share; else it begins again. The experts are those that training in one process gives, bit for bit, if they are stacked
the same way (`experts_at_once`) and computed with the same number of threads, which is settled before the jobs are sent.
"""

from __future__ import annotations

import dataclasses
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
from ..data.task_datasets import TaskDatasets
from ..disk import file_lock
from ..errors import BankError, ConfigError
from ..jobs import Engine, opened, run_jobs, shard_of
from .logs import LogRecord, add_rows, read_rows
from .stage_inputs import Job

_REPORT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Fanout:
    """How the experts stage is spread. experts_per_job: None is as many as are trained at once in one process. shard: (I, N),
    only every N-th job from the I-th on, where an array of processes shares the work and the bank's folder."""

    engine: Engine
    experts_per_job: int | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.experts_per_job is not None and self.experts_per_job < 1:
            raise ConfigError(f"experts_per_job must be None or >= 1; got {self.experts_per_job}")


@dataclass(frozen=True, slots=True)
class TrainedExperts:
    """What a job gives back: files of the bank, their records, and the rows of its learning curves."""

    files: dict[str, npt.NDArray[np.uint8]]
    records: dict[str, FileRecord]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class ExpertsJob:
    """Trains `experts`. home: the driver's bank, in whose folder the job works if it is to be seen from here.

    fit_stage: `training.fit_stage`, handed in because this file lies below it; it is pickled by name.
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
        """What it is, for errors."""
        return f"experts {_span(self.experts)} of {self.home}"

    def __call__(self) -> TrainedExperts:
        """Trains from wherever an earlier attempt came to."""
        folder = self._folder()
        with file_lock(folder.with_name(f"{folder.name}.lock")):  # an attempt that was given up may still be dying
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
            bank.refresh()
            records = {name: bank.manifest.files[name] for name in map(expert_file, self.experts)}
            files = {name: read_content(folder / name, record) for name, record in records.items()}
            return TrainedExperts(files, records, read_rows(folder / "logs" / "experts.csv"))

    def _folder(self) -> Path:
        shared = is_bank(self.home)
        parent = job_folders(self.home) if shared else node_folder() / f"jobs-{self.bank.key}"
        return parent / _span(self.experts)

    def _own_bank(self, folder: Path) -> ExpertBank:
        """The job's bank in `folder`: one that an earlier attempt left, if it was made of the same, else a new one."""
        base = self.bank.open()
        if is_bank(folder):
            bank = ExpertBank.open(folder)
            if bank.manifest.with_experts(()).files == base.manifest.files and bank.groups == base.groups:
                return bank
            shutil.rmtree(folder)
        return base.copy_to(folder)


class _Reporter:
    """Says now and then how far a job is, on stderr, which both engines bring to the driver's terminal."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, time.monotonic()

    def __call__(self, record: LogRecord) -> None:
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self._last = time.monotonic()
            tqdm.write(f"{self._name}: step {record.step:,} of {record.steps:,}, loss {record.loss:.4f}", file=sys.stderr)


def train_in_jobs(
    job: Job[ExpertsConfig],
    threads: int,
    fanout: Fanout,
    device: str,
    progress: bool | None,
    fit_stage: Callable[..., None],
) -> Iterator[TrainedExperts]:
    """Yields what each job of the stage gives, as it ends; verified. fit_stage: `training.fit_stage`, which every job calls.

    Raises:
        ConfigError: datasets that no other process can open. BankError: what came back is damaged. Else as `jobs.run_jobs`.
    """
    if job.data.reopen is None:
        raise ConfigError("these datasets were put together in memory; only those of TaskDatasets.open can be sent to jobs")
    config = dataclasses.replace(job.config, threads=threads)
    chosen = _spans(job, fanout)
    shown = sys.stderr.isatty() if progress is None else progress
    with opened(fanout.engine), tqdm(total=sum(map(len, chosen)), unit="expert", desc="experts", disable=not shown) as bar:
        shipped = ship(job.bank, fanout.engine, experts=())
        home = job.bank.path.absolute()
        jobs = [
            ExpertsJob(
                bank=shipped,
                home=home,
                data=job.data.reopen,
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
    """Writes a job's experts into `bank`, next to others' that came meanwhile, and removes what the job kept there.

    Raises:
        BankError: damaged on the way, or the bank's backbone is not the one that they were trained on.
    """
    tensors = {
        name: received_tensors(content, trained.records[name], bank.path / name) for name, content in trained.files.items()
    }
    backbone = bank.manifest.files["backbone.safetensors"]
    with file_lock(bank.path / "resume" / ".commit"):
        bank.refresh(check="sizes")  # hashing all experts for each of them would cost more than training them
        if bank.manifest.files["backbone.safetensors"] != backbone:
            raise BankError(f"the backbone of bank {bank.path} was changed while {sorted(tensors)} were trained on it")
        bank.commit(tensors, stages=bank.manifest.stages | {"experts": record})
        add_rows(bank.path / "logs" / "experts.csv", trained.rows)
    remove_finished_jobs(bank)


def remove_finished_jobs(bank: ExpertBank) -> None:
    """Removes the folders of jobs whose experts are all in the bank."""
    for folder in job_folders(bank.path).glob("*-*/"):
        first, last = map(int, folder.name.split("-"))
        if {*range(first, last + 1)} <= set(bank.finished_experts):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def job_folders(bank: Path) -> Path:
    """Where the jobs of a bank work."""
    return bank / "resume" / "jobs"


def _spans(job: Job[ExpertsConfig], fanout: Fanout) -> list[tuple[int, ...]]:
    """The experts of each job of the shard that has some left to train."""
    n_experts = job.bank.config.n_experts
    size = fanout.experts_per_job or job.config.experts_at_once or n_experts
    wanted = (set(range(n_experts)) if job.experts is None else job.experts) - set(job.bank.finished_experts)
    firsts = shard_of(range(0, n_experts, size), fanout.shard)
    spans = [tuple(e for e in range(first, min(first + size, n_experts)) if e in wanted) for first in firsts]
    return [span for span in spans if span]


def _span(experts: Sequence[int]) -> str:
    return f"{experts[0]:03d}-{experts[-1]:03d}"
