"""Keeps two threads from using one agent at the same time."""

from __future__ import annotations

import threading

from ..errors import StageError


class OneThread:
    """A door that lets one thread in at a time and turns a second one away. A copy, or a pickle, of it is a new one.

    Raises:
        StageError: on entry, if another thread is inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise StageError(
                "another thread is using this agent, whose episodes would mix; an agent serves one thread: "
                "give each its own with agent.copy(), which shares the weights"
            )

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[OneThread], tuple[()]]:
        return OneThread, ()
