"""Runs jobs in processes of this machine: spawned workers, each of which gets the next job when it has finished one."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from ..errors import M3DTError
from ..system.machine import usable_cores
from .engines import Failure, Job, LocalProcesses
from .worker import Started, pack, work

log = logging.getLogger(__name__)

R = TypeVar("R")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_END_SECONDS = 3.0


def run_in_processes(jobs: Sequence[Job[R]], engine: LocalProcesses) -> Generator[tuple[int, R]]:
    """As `run_jobs`."""
    count = min(usable_cores() if engine.workers is None else engine.workers, len(jobs))
    waiting = deque((number, 0) for number in range(len(jobs)))
    with _workers() as processes:
        running: dict[Connection, tuple[int, int]] = {}
        started: set[Connection] = set()
        for _ in range(count):
            _give(_start(processes), jobs, waiting, running)
        while running:
            for connection in [ready for ready in wait(list(running)) if isinstance(ready, Connection)]:
                outcome = _receive(connection, processes[connection], connection in started)
                if isinstance(outcome, Started):
                    started.add(connection)
                    continue
                number, tries = running.pop(connection)
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
    packed = pack(jobs[number])
    with contextlib.suppress(OSError):
        connection.send(packed)


def _receive(connection: Connection, process: SpawnProcess, started: bool) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        process.join(5)
    if not started and process.exitcode is not None and process.exitcode > 0:  # no signal, and it would happen again
        text = (
            f": a worker process cannot start (exit code {process.exitcode}; its own message is above); workers=0 does without"
        )
        return Failure(M3DTError, text, final=True)
    return Failure(M3DTError, f": the worker died (exit code {process.exitcode})", final=False)


@contextlib.contextmanager
def _workers() -> Iterator[dict[Connection, SpawnProcess]]:
    """Gives the workers by connection, none at first, and ends all of them when the block ends."""
    processes: dict[Connection, SpawnProcess] = {}
    try:
        yield processes
    finally:
        try:
            _end(list(processes.values()))
        finally:
            for connection, process in processes.items():
                process.kill()  # after a second Ctrl-C, which does not wait
                process.join()
                connection.close()


def _end(processes: Sequence[SpawnProcess]) -> None:
    """Asks workers to end, and kills those that have not after some seconds; a stopped one (SIGSTOP) does not hear it."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _start(processes: dict[Connection, SpawnProcess]) -> Connection:
    """Starts a worker and adds it to `processes`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    with _one_thread(), _without_interrupts(), _without_main():
        process.start()
        processes[ours] = process
    theirs.close()
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


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started inside the block never hear Ctrl-C, not even while they import; it is the parent's to handle.

    This process hears it when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes started inside the block do not run the caller's script again; jobs that need it see to that (worker.py)."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
