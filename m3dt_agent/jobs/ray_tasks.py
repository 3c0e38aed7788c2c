"""Runs jobs as tasks of a Ray cluster (extra `ray`), which places and restarts them and brings results and output back.

    driver ── job, by value ──► task on some node, `cpus_per_job` CPUs reserved, OMP_NUM_THREADS set by Ray from that
           ◄── result ────────

Every node needs this package, and the folders that jobs read at the same paths. Banks are sent (`ShippedBank`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, TypeVar

from ..errors import ConfigError, M3DTError, MissingDependencyError
from .engines import Failure, Job, RayCluster, attempt

R = TypeVar("R")

_SUBMITTED = 1000
"""How many jobs are submitted at once: more than a cluster runs, and few enough to bound the driver's memory."""

_ANSWER_SECONDS = 10.0


def require_ray() -> Any:
    """The module `ray`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--ray needs Ray: pip install 'm3dt-agent[ray]'") from error
    return ray


@contextlib.contextmanager
def connected(cluster: RayCluster) -> Iterator[Any]:
    """Connects to the cluster and gives the module `ray`. If there already is a connection, it is used and left open.

    Raises:
        MissingDependencyError: no Ray. ConfigError: no cluster at that address.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        _require_answer(cluster.address)
        ray.init(
            address=cluster.address,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": _user_path()}},
            **({"include_dashboard": False} if cluster.address == "local" else {}),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster at {cluster.address!r}: {error}; --ray local starts one on this machine, `ray start --head` one "
            "that others can join"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Checks that something listens at host:port; Ray itself would keep trying for over ten minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()


def _user_path() -> str:
    """The folders of this process's import path that do not belong to the Python installation, such as the working directory.

    If a node sees the same folders, jobs find the caller's own modules in them.
    """
    folders = [os.path.abspath(folder) for folder in sys.path]
    return os.pathsep.join(folder for folder in folders if not folder.startswith((sys.prefix, sys.base_prefix)))


def run_on_ray(jobs: Sequence[Job[R]], cluster: RayCluster) -> Generator[tuple[int, R]]:
    """As `jobs.run_jobs`."""
    with connected(cluster) as ray:
        task = ray.remote(
            num_cpus=cluster.cpus_per_job,
            num_gpus=cluster.gpus_per_job,
            max_retries=cluster.retries,
            retry_exceptions=True,
        )(attempt)
        waiting, running = deque(enumerate(jobs)), dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < _SUBMITTED:
                    number, job = waiting.popleft()
                    running[task.options(name=job.name).remote(job)] = number
                for reference in ray.wait(list(running))[0]:
                    number = running.pop(reference)
                    yield number, _result(ray, reference, jobs[number])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any, job: Job[R]) -> R:
    try:
        outcome: R | Failure = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ray.exceptions.RaySystemError):  # the job never began
            why = str(error.cause).splitlines()[0]
            raise ConfigError(
                f"{job.name}: a node cannot load the job: {why}; put the class in a module that every node can import"
            ) from None
        raise M3DTError(f"{job.name} failed:\n{error}") from None
    except ray.exceptions.RayError as error:
        raise M3DTError(f"{job.name}: the worker died ({type(error).__name__}: {error})") from None
    if isinstance(outcome, Failure):
        raise outcome.error(job.name)
    return outcome
