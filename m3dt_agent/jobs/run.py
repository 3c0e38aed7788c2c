"""Runs jobs on an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

from .engines import Engine, Job, RayCluster, runs_here
from .processes import run_in_processes

R = TypeVar("R")


def run_jobs(jobs: Sequence[Job[R]], engine: Engine) -> Generator[tuple[int, R]]:
    """Yields the number and the result of every job when it ends. When the generator is closed, running jobs are stopped.

    Raises:
        M3DTError: a job failed; the message has its name and, for errors of other packages, the worker's traceback.
        MissingDependencyError: the engine is a RayCluster and Ray is not installed.
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
    """Stays connected to a Ray cluster inside the block, so that data can be sent before jobs; other engines need none.

    Raises:
        MissingDependencyError: the engine is a RayCluster and Ray is not installed. ConfigError: there is no such cluster.
    """
    if not isinstance(engine, RayCluster):
        yield
        return
    from .ray_tasks import connected

    with connected(engine):
        yield
