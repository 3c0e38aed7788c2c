"""Jobs for the tests of `jobs` and `ray_tasks`, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from m3dt_agent.errors import ConfigError


@dataclass(frozen=True)
class Square:
    """Gives number²; notes every attempt as a line in `notes`."""

    number: int
    notes: Path
    trouble: str = ""  # "error", "foreign", "lock" or "death"
    times: int = 10**9  # so often
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"square of {self.number}"

    def __call__(self) -> int:
        with (self.notes / str(self.number)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if attempts(self.notes, self.number) <= self.times:
            if self.trouble == "error":
                raise ConfigError("no such square")
            if self.trouble == "foreign":
                raise ZeroDivisionError("squares of zero")
            if self.trouble == "lock":
                return threading.Lock()  # type: ignore[return-value]  # which cannot be pickled
            if self.trouble == "death":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return self.number**2


def attempts(notes: Path, number: int) -> int:
    """How often a job was begun."""
    file = notes / str(number)
    return len(file.read_text().splitlines()) if file.exists() else 0
