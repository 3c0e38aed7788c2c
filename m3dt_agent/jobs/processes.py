"""Runs jobs in processes of this machine: spawned workers, each of which gets the next job when it has finished one."""

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
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from ..errors import M3DTError
from ..machine import usable_cores
from .engines import Failure, Job, LocalProcesses, attempt

log = logging.getLogger(__name__)

R = TypeVar("R")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PARENT_POLL_SECONDS = 1.0


def run_in_processes(jobs: Sequence[Job[R]], engine: LocalProcesses) -> Generator[tuple[int, R]]:
    """As `run_jobs`."""
    count = min(usable_cores() if engine.workers is None else engine.workers, len(jobs))
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
    """Sends the next job to the worker at the other end. If the worker is dead, `_receive` finds out."""
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
    """Gives the workers by connection, none at first, and ends all of them when the block ends."""
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
    """Starts a worker and adds it to `processes`."""
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
    """Processes started inside the block use one BLAS thread each: there is one worker per core."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _work(connection: Connection) -> None:
    """The worker's loop: receives jobs and sends results or failures until the parent is gone. The parent handles Ctrl-C."""
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
