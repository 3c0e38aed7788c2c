"""A worker process of `processes.py`: it says that it has started, then receives jobs and sends what came of them.

    parent -> worker   (job, pickled; how to import the caller's `__main__`, or {})
    worker -> parent   Started() once, then a result or a Failure for each job

Only a job that uses a class or function of the caller's script makes a worker run that script again, as multiprocessing does,
under the name `__mp_main__`. Every other job works from scripts without a main guard, from standard input and from notebooks.
"""

from __future__ import annotations

import contextlib
import multiprocessing.spawn
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..errors import ConfigError, M3DTError
from .engines import Failure, Job, attempt

_PARENT_POLL_SECONDS = 1.0

WITHOUT_WORKERS = "put the class or function in a module that workers can import too, or use no workers (workers=0)"
_GUARD = "put what a script starts under `if __name__ == '__main__':`, which workers skip; else "


@dataclass(frozen=True, slots=True)
class Started:
    """A worker is ready for jobs."""


def pack(job: Job[Any]) -> tuple[bytes, Mapping[str, str]]:
    """The job as it is sent to a worker.

    Raises:
        ConfigError: it cannot be pickled.
    """
    try:
        content = bytes(ForkingPickler.dumps(job))
    except Exception as error:  # whatever a class's own methods raise
        raise ConfigError(f"{job.name}: a job must be picklable to reach a worker: {error}; {WITHOUT_WORKERS}") from error
    return content, _caller() if b"__main__" in content else {}


def work(connection: Connection) -> None:
    """The worker's loop, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(Started())
        while True:
            content, caller = connection.recv()
            connection.send_bytes(_outcome(content, caller))


def _outcome(content: bytes, caller: Mapping[str, str]) -> bytes:
    """What came of the job, pickled."""
    try:
        job = _load(content, caller)
        outcome = job if isinstance(job, Failure) else attempt(job)
        return bytes(ForkingPickler.dumps(outcome))
    except Exception:
        return bytes(ForkingPickler.dumps(Failure(M3DTError, f" failed:\n{traceback.format_exc()}", final=False)))


def _load(content: bytes, caller: Mapping[str, str]) -> Job[Any] | Failure:
    try:
        multiprocessing.spawn.prepare(dict(caller))
    except BaseException as error:  # the script may do anything, also end
        script = caller.get("init_main_from_path") or caller.get("init_main_from_name")
        why = f"it uses a class or function of {script}, and a worker that runs this again fails: {_told(error)}"
        return Failure(ConfigError, f": {why}; {_GUARD}{WITHOUT_WORKERS}", final=True)
    try:
        job: Job[Any] = pickle.loads(content)
    except Exception as error:
        return Failure(ConfigError, f": a worker cannot load the job: {_told(error)}; {WITHOUT_WORKERS}", final=True)
    return job


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _caller() -> Mapping[str, str]:
    """How a worker finds what runs as `__main__` here, in the words of multiprocessing; {}: not at all, as in a notebook."""
    found = multiprocessing.spawn.get_preparation_data("")
    return {name: value for name, value in found.items() if name.startswith("init_main")}


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(1)
