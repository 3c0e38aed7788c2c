"""Jobs and the two engines that run them: processes of this machine, and a Ray cluster.

    run_jobs(jobs, engine) ─► worker: job() ─► (number of the job, its result), in the order in which jobs end

A job is picklable, and its result depends only on its fields, so it may run anywhere, be retried, and run beside other jobs.
What happens when a job fails depends on the error:

    an `M3DTError`                      it would occur again: the run ends at once with the job's name
    another error, or a dead worker     the job is tried again up to `retries` times, and may continue from files it left; then
                                        the run ends with the job's name and its traceback

Results that were yielded before are the caller's to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from ..errors import ConfigError, M3DTError

RETRIES = 3
"""How often a job is tried again after an error or the death of its worker; the default of Ray's tasks."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[R_co]):
    """Work that can be done anywhere. Errors tell the job by its `name`."""

    @property
    def name(self) -> str: ...

    def __call__(self) -> R_co: ...


@dataclass(frozen=True, slots=True)
class LocalProcesses:
    """Processes of this machine. workers: how many. None: one per core. 0: none; jobs run in this process, without retries."""

    workers: int | None = None
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must be None or >= 0; got {self.workers}")
        _check_retries(self.retries)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster. cpus_per_job, gpus_per_job: what each job reserves; fractions of GPUs are allowed.

    address: "local" starts a cluster on this machine; "auto" uses RAY_ADDRESS, or the cluster that runs on this machine; others
    are passed to `ray.init`.
    """

    address: str = "auto"
    cpus_per_job: int = 1
    gpus_per_job: float = 0.0
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.cpus_per_job < 1 or self.gpus_per_job < 0:
            raise ConfigError(
                f"cpus_per_job must be >= 1 and gpus_per_job >= 0; got {self.cpus_per_job} and {self.gpus_per_job}"
            )
        _check_retries(self.retries)


Engine: TypeAlias = LocalProcesses | RayCluster


def runs_here(engine: Engine) -> bool:
    """Whether jobs run in this process, one after the other."""
    return isinstance(engine, LocalProcesses) and engine.workers == 0


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a worker. kind: the error's class. text: the message after the job's name. final: do not try again."""

    kind: type[M3DTError]
    text: str
    final: bool

    def error(self, name: str) -> M3DTError:
        """The error that ends the run."""
        return self.kind(f"{name}{self.text}")


def attempt(job: Job[R]) -> R | Failure:
    """Runs the job and returns its result, or a `Failure` for an `M3DTError`. Other errors are raised."""
    try:
        return job()
    except M3DTError as error:
        return Failure(type(error), f": {error}", final=True)


def shard_of(items: Sequence[R], shard: tuple[int, int]) -> list[R]:
    """Every N-th item, beginning with the I-th, for `shard` (I, N) of a job array; I counts from 1.

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
