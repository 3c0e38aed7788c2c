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

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, TypeAlias, TypeVar

from ..errors import ConfigError, M3DTError

log = logging.getLogger(__name__)

RETRIES = 3
"""How often a job is tried again after it failed or its worker died; Ray's own default for tasks."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PARENT_POLL_SECONDS = 1.0

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


def run_jobs(jobs: Sequence[Job[R]], engine: Engine) -> Generator[tuple[int, R]]:
    """Yields the number and the result of every job as it ends; stops what still runs however it is left.

    Raises:
        M3DTError: a job failed; the message has its name and, if it was no error of this package's, the worker's traceback.
        MissingDependencyError: Ray is asked for and not installed.
    """
    if isinstance(engine, RayCluster):
        from .ray_tasks import run_on_ray

        yield from run_on_ray(jobs, engine)
    elif runs_here(engine):
        for number, job in enumerate(jobs):
            yield number, job()
    else:
        yield from _run_in_processes(jobs, engine)


@contextlib.contextmanager
def opened(engine: Engine) -> Iterator[None]:
    """Connected to the engine meanwhile, where there is something to connect to, so that data can be sent ahead of jobs.

    Raises:
        MissingDependencyError: Ray is asked for and not installed. ConfigError: no such cluster.
    """
    if not isinstance(engine, RayCluster):
        yield
        return
    from .ray_tasks import connected

    with connected(engine):
        yield


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


def _run_in_processes(jobs: Sequence[Job[R]], engine: LocalProcesses) -> Generator[tuple[int, R]]:
    count = min(len(os.sched_getaffinity(0)) if engine.workers is None else engine.workers, len(jobs))
    waiting = deque((number, 0) for number in range(len(jobs)))
    with _workers() as processes:
        running: dict[Connection, tuple[int, int]] = {}
        for _ in range(count):
            _give(_start(processes), jobs, waiting, running)
        while running:
            for connection in [ready for ready in wait(list(running)) if isinstance(ready, Connection)]:
                number, tries = running.pop(connection)
                outcome = _receive(connection, processes[connection])
                if not isinstance(outcome, Failure):
                    yield number, outcome
                elif outcome.final or tries == engine.retries:
                    raise outcome.error(jobs[number].name)
                else:
                    log.warning("%s; trying again (%d of %d)", outcome.error(jobs[number].name), tries + 1, engine.retries)
                    waiting.appendleft((number, tries + 1))
                if waiting:
                    alive = processes[connection].is_alive()
                    _give(connection if alive else _start(processes), jobs, waiting, running)


def _give(
    connection: Connection,
    jobs: Sequence[Job[Any]],
    waiting: deque[tuple[int, int]],
    running: dict[Connection, tuple[int, int]],
) -> None:
    """The next job, to the worker at the other end; if it is dead, its end is what is received."""
    number, _ = running[connection] = waiting.popleft()
    with contextlib.suppress(OSError):
        connection.send(jobs[number])


def _receive(connection: Connection, process: SpawnProcess) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        process.join(5)
        return Failure(M3DTError, f": the worker died (exit code {process.exitcode})", final=False)


@contextlib.contextmanager
def _workers() -> Iterator[dict[Connection, SpawnProcess]]:
    """All workers by connection; none is left at the end."""
    processes: dict[Connection, SpawnProcess] = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for connection, process in processes.items():
            process.join()
            connection.close()


def _start(processes: dict[Connection, SpawnProcess]) -> Connection:
    """A new worker, noted in `processes`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    with _one_thread():
        process.start()
    theirs.close()
    processes[ours] = process
    return ours


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started inside the block see one BLAS thread: their cores are taken by the other workers."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _work(connection: Connection) -> None:
    """A worker: jobs in, results or failures out, until the parent is gone. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = connection.recv()
            try:
                outcome = attempt(job)
            except Exception:
                outcome = Failure(M3DTError, f" failed:\n{traceback.format_exc()}", final=False)
            connection.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(1)
