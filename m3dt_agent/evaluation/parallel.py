"""Evaluation in independent jobs: some tasks each, on this machine or a Ray cluster; the rows are those of `evaluate`.

    parts of TASKS_PER_PART tasks ─► job: the bank opened on its node, all episodes of its tasks ─► rows, in the tasks' order

Which episodes act together decides the last bits of an action, so `evaluate` goes by the same parts with `deterministic`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ..agent import Experts, M3DTAgent, Precision
from ..bank import ExpertBank
from ..bank.shipped import ShippedBank, ship
from ..config import EvalConfig
from ..errors import ConfigError
from ..jobs import Engine, LocalProcesses, opened, run_jobs
from ..scores import EpisodeResult
from ..tasks import TaskSpec, resolve
from .rollout import evaluate, parts_of


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """All episodes of `tasks`. who: a bank, or a behavior policy's level. Else as `evaluate_in_jobs`."""

    who: ShippedBank | str
    tasks: tuple[str, ...]
    config: EvalConfig
    experts: Experts | None
    precision: Precision
    device: str

    @property
    def name(self) -> str:
        """What it is, for errors."""
        return f"evaluating {', '.join(self.tasks)}"

    def __call__(self) -> list[EpisodeResult]:
        """The rows, ordered by task and seed."""
        who = self.who if isinstance(self.who, str) else _agent(self.who, self.experts, self.precision, self.device)
        return evaluate(who, self.tasks, self.config, progress=False)


@functools.lru_cache(maxsize=1)
def _agent(bank: ShippedBank, experts: Experts | None, precision: Precision, device: str) -> M3DTAgent:
    """The agent of a bank, kept for the next job of this process."""
    agent = M3DTAgent.load(bank.folder(), device=device, precision=precision)
    if experts is not None:
        agent.experts = experts
    return agent


def evaluate_in_jobs(
    who: ExpertBank | str,
    tasks: Sequence[str | TaskSpec],
    config: EvalConfig,
    engine: Engine,
    *,
    experts: Experts | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    progress: bool | None = None,
) -> list[EpisodeResult]:
    """As `evaluation.evaluate`, in jobs of `engine`.

    Args:
        who: a bank, or the level of a behavior policy. experts, precision, device: of the bank's agent.
        config: its `workers` are of each job (None: as many as the CPUs a job reserves; one CPU: none).

    Raises:
        As `evaluate`, and as `jobs.run_jobs`.
    """
    specs = resolve(tasks)
    if not specs:
        raise ConfigError("evaluate needs at least one task")
    if config.workers is None:
        config = dataclasses.replace(config, workers=_workers_per_job(engine))
    rows: dict[int, list[EpisodeResult]] = {}
    shown = sys.stderr.isatty() if progress is None else progress
    with (
        opened(engine),
        tqdm(total=len(specs) * config.episodes, desc="evaluate", unit="episode", disable=not shown) as bar,
    ):
        sent = who if isinstance(who, str) else ship(who, engine)
        names = [tuple(task.name for task in part) for part in parts_of(specs)]
        jobs = [EvaluationJob(sent, part, config, experts, precision, device) for part in names]
        for number, found in run_jobs(jobs, engine):
            rows[number] = found
            bar.update(len(found))
    return [row for number in sorted(rows) for row in rows[number]]


def _workers_per_job(engine: Engine) -> int:
    cpus = 1 if isinstance(engine, LocalProcesses) else engine.cpus_per_job
    return cpus if cpus > 1 else 0
