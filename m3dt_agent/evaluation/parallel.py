"""Evaluation in independent jobs of some tasks each, on this machine or on a Ray cluster; the rows are those of `evaluate`.

    parts of TASKS_PER_PART tasks ─► job: opens the bank on its node, runs all episodes of its tasks ─► rows, in order of tasks

The last bits of an action depend on which episodes act together. With `deterministic`, `evaluate` uses the same parts, so that
rows are equal to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..agent import Experts, M3DTAgent, Precision
from ..agent.choice import default_experts
from ..bank import ExpertBank
from ..bank.shipped import ShippedBank, ship
from ..config import EvalConfig
from ..envs.make import Registrations, registrations
from ..errors import ConfigError
from ..jobs import Engine, LocalProcesses, RayCluster, opened, run_jobs, runs_here
from ..scores.rows import EpisodeResult
from ..system.machine import shows_progress
from ..tasks import TaskSpec, resolve
from .kept import Protocol, keep_rows
from .policies import acting_settings, policy_name
from .rollout import episodes_of, evaluate, installed_versions, parts_of


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """All episodes of `tasks`. who: a bank, or the level of a behavior policy; the rest is as in `evaluate_in_jobs`.

    own: as from `registrations`.
    """

    who: ShippedBank | str
    tasks: tuple[TaskSpec, ...]
    config: EvalConfig
    experts: Experts | None
    precision: Precision
    device: str
    own: Registrations = field(default_factory=Registrations)

    @property
    def name(self) -> str:
        """What the job does, for error messages."""
        return f"evaluating {', '.join(task.name for task in self.tasks)}"

    def __call__(self) -> list[EpisodeResult]:
        """Runs the episodes and returns their rows, ordered by task and seed."""
        self.own.adopt()
        who = self.who if isinstance(self.who, str) else _agent(self.who, self.experts, self.precision, self.device)
        return evaluate(who, self.tasks, self.config, progress=False)


@functools.lru_cache(maxsize=1)
def _agent(bank: ShippedBank, experts: Experts | None, precision: Precision, device: str) -> M3DTAgent:
    """The agent of a bank; the last one is kept for the next job of this process."""
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
    rows: str | Path | None = None,
    progress: bool | None = None,
) -> list[EpisodeResult]:
    """Does what `evaluate` does, in jobs of `engine`.

    Args:
        who: a bank, or the level of a behavior policy.
        config: its `workers` holds for each job; None is one worker per CPU that a job reserves, and no workers for one CPU.
        experts, precision, device: how the bank's agent acts; `experts` None is the bank's default.
        rows: as in `evaluate`; this process writes the rows of a job when the job ends, and jobs with missing rows run again.
        progress: show a progress bar; None: only on a terminal.

    Raises:
        M3DTError: errors of `evaluate` and of `jobs.run_jobs`.
    """
    specs = resolve(tasks, first=() if isinstance(who, str) else who.tasks)
    if not specs:
        raise ConfigError("evaluate needs at least one task")
    if config.workers is None:
        config = dataclasses.replace(config, workers=_workers_per_job(engine))
    asked, parts = episodes_of(specs, config), parts_of(specs)
    with (
        keep_rows(rows, _protocol(who, config, engine, experts, precision), asked) as kept,
        opened(engine),
        tqdm(
            total=len(asked), initial=kept.ended, desc="evaluate", unit="episode", disable=not shows_progress(progress)
        ) as bar,
    ):
        if not runs_here(engine):
            registrations(specs).require_importable()
        missing = [part for part in parts if not all(episode in kept for episode in episodes_of(part, config))]
        if missing:
            sent = who if isinstance(who, str) else ship(who, engine)
            jobs = [
                EvaluationJob(
                    who=sent,
                    tasks=tuple(part),
                    config=config,
                    experts=experts,
                    precision=precision,
                    device=device,
                    own=registrations(part),
                )
                for part in missing
            ]
            for _, found in run_jobs(jobs, engine):
                bar.update(sum(kept.add(row) for row in found))
        return kept.finish()


def _protocol(
    who: ExpertBank | str, config: EvalConfig, engine: Engine, experts: Experts | None, precision: Precision
) -> Protocol:
    """What the rows of all jobs have in common, as far as it is known before they run."""
    versions = None if isinstance(engine, RayCluster) else installed_versions()
    if isinstance(who, str):
        return Protocol(who, "", config.stop_on_success, {}, versions)
    acting = default_experts(who) if experts is None else experts
    settings = acting_settings(acting, config.rtg_mode, None if precision == "auto" else precision)
    return Protocol(policy_name(acting), who.content_hash, config.stop_on_success, settings, versions)


def _workers_per_job(engine: Engine) -> int:
    cpus = 1 if isinstance(engine, LocalProcesses) else engine.cpus_per_job
    return cpus if cpus > 1 else 0
