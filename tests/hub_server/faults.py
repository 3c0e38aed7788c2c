"""Faults for the loopback Hub: what goes wrong, for which requests, and how often.

kind       looked up by             what happens
before     "METHOD path?query"      a callback runs, then the request is handled
fail       "METHOD path?query"      an HTTP error instead of handling it
forge      "METHOD path?query"      a callback makes another answer of the one it would have been
drop       "METHOD path?query"      the connection closes after it was handled, before the answer
cut        the file's path          the connection closes within the body
corrupt    the file's path          one byte of the body is another
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub_server.calls import Answer


@dataclass
class Fault:
    """One thing to go wrong, `times` more times (None: for ever), wherever `pattern` is found."""

    kind: str
    pattern: re.Pattern[str]
    times: int | None
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    after_bytes: int = 0
    callback: Callable[[], object] | None = None
    change: Callable[[Answer], Answer] | None = None


class Faults:
    """The faults still to come, in the order they were asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """One more."""
        with self._lock:
            self._faults.append(fault)

    def take(self, kind: str, text: str) -> Fault | None:
        """The first of its kind for this text, used up by one."""
        with self._lock:
            fault = self._find(kind, text)
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
            return fault

    def waits(self, kind: str, text: str) -> bool:
        """Whether there is one for this text."""
        with self._lock:
            return self._find(kind, text) is not None

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._faults.clear()

    def _find(self, kind: str, text: str) -> Fault | None:
        return next((fault for fault in self._faults if fault.kind == kind and fault.pattern.search(text)), None)
