"""Runs jobs on an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

from .engines import Engine, Job, RayCluster, runs_here
from .processes import (
    run_in_processes,
)

R = TypeVar("R")


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
        yield from run_in_processes(jobs, engine)


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
