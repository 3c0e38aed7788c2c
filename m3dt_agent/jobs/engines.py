"""Independent jobs, in processes of this machine or on a Ray cluster: one description of the work, two engines.

    run_jobs(jobs, engine) ─► worker: job() ─► (number of the job, its result), in the order they end

A job is picklable, and its result depends on its fields alone, so that it does not matter where it runs, how often it was begun
and in what company. What goes wrong is of two kinds:

    an error of this package's    would go wrong again: it ends the run at once, with the job's name
    anything else, or a death     tried again, `retries` times, from wherever the job finds what it left; then it ends the run,
                                  with the job's name and its traceback

What ended before is kept by whoever takes the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from ..errors import ConfigError, M3DTError

RETRIES = 3
"""How often a job is tried again after it failed or its worker died; Ray's own default for tasks."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[R_co]):
    """Work that can be done anywhere. `name` says in errors what it was."""

    @property
    def name(self) -> str: ...

    def __call__(self) -> R_co: ...


@dataclass(frozen=True, slots=True)
class LocalProcesses:
    """Processes of this machine. workers: how many (None: one per core; 0: none, jobs run here and are not tried again)."""

    workers: int | None = None
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must be None or >= 0; got {self.workers}")
        _check_retries(self.retries)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster. address: "local" starts one on this machine, "auto" takes RAY_ADDRESS or the one running here, else what
    `ray.init` takes. cpus_per_job, gpus_per_job: what a job reserves; fractions of GPUs are allowed."""

    address: str = "auto"
    cpus_per_job: int = 1
    gpus_per_job: float = 0.0
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.cpus_per_job < 1 or self.gpus_per_job < 0:
            raise ConfigError(
                f"a job takes at least one CPU and no fewer than 0 GPUs; got {self.cpus_per_job}, {self.gpus_per_job}"
            )
        _check_retries(self.retries)


Engine: TypeAlias = LocalProcesses | RayCluster


def runs_here(engine: Engine) -> bool:
    """Whether jobs run in this very process, one after the other, so that nothing is sent anywhere."""
    return isinstance(engine, LocalProcesses) and engine.workers == 0


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a worker. kind: of error; text: what follows the job's name; final: trying again is no use."""

    kind: type[M3DTError]
    text: str
    final: bool

    def error(self, name: str) -> M3DTError:
        """What ends the run."""
        return self.kind(f"{name}{self.text}")


def attempt(job: Job[R]) -> R | Failure:
    """The job's result, or what went wrong if that is an error of this package's; anything else is raised."""
    try:
        return job()
    except M3DTError as error:
        return Failure(type(error), f": {error}", final=True)


def shard_of(items: Sequence[R], shard: tuple[int, int]) -> list[R]:
    """Every N-th item from the I-th on, for `shard` (I, N) of a job array.

    Raises:
        ConfigError: not 1 <= I <= N.
    """
    i, n = shard
    if not 1 <= i <= n:
        raise ConfigError(f"a shard I/N needs 1 <= I <= N; got {i}/{n}")
    return list(items[i - 1 :: n])


def _check_retries(retries: int) -> None:
    if retries < 0:
        raise ConfigError(f"retries must be >= 0; got {retries}")


# -- processes of this machine -------------------------------------------------------------------------------------------------
