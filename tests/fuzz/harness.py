"""The parent: sends recipes to the child, adds what it sees itself, and says whether an outcome is a finding.

Fuzzer(folder) as fuzzer:
    fuzzer.templates                    what there is to edit
    fuzzer.run(recipe) → Outcome        `finding` is empty if the reader did well
    fuzzer.counts                       inputs, outcomes, slowest, peak memory
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fuzz.hub_answers import HostileHub
from fuzz.layout import BOX, HOME, LIMIT_S
from fuzz.sentinels import Sentinels

TESTS = Path(__file__).parents[1]
GRACE_S = 2.0
"""After the child's own alarm: a reader that hangs in C does not see it."""
START_S = 120.0
SHOWN_OF_LOG = 1500
LINKED, READ = ("secret", "home", "upwards"), ("outside: reads", "outside: opened", "outside: read")
"""A link in a folder may be followed to a file, as in the Hub's cache, but nothing may be written there or passed on."""

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of an input. kind: value, error (an M3DTError), or what went wrong; text: the value or the error."""

    kind: str
    text: str
    seconds: float
    peak_mb: float
    seen: tuple[str, ...] = ()

    @property
    def finding(self) -> str:
        """What is wrong with it; empty if it is a value or an M3DTError, and nothing else was touched."""
        wrong = [] if self.kind in ("value", "error") else [f"{self.kind}: {self.text}"]
        return "\n".join([*wrong, *self.seen])


@dataclass
class Counts:
    """Of all inputs of one reader."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: int = 0
    slowest: float = 0.0
    peak_mb: float = 0.0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.inputs += 1
        name = outcome.kind if outcome.kind != "error" else outcome.text.partition(":")[0]
        self.outcomes[name] += 1
        self.findings += bool(outcome.finding)
        self.slowest, self.peak_mb = max(self.slowest, outcome.seconds), max(self.peak_mb, outcome.peak_mb)
        self.seconds += outcome.seconds

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common())
        return (
            f"{self.inputs} inputs in {self.seconds:.1f} s, slowest {self.slowest:.2f} s, peak memory {self.peak_mb:.0f} MB, "
            f"{self.findings} finding(s); {kinds}"
        )


class Fuzzer:
    """One child, its sandbox under `folder`, and a loopback Hub whose answers recipes change.

    Args:
        readers: a module with more READERS, for the tests of this harness.
        limit_s: seconds for each input, unless its recipe says otherwise.
        grace_s: how much longer it has if the child does not answer.
    """

    def __init__(self, folder: Path, *, readers: str | None = None, limit_s: float = LIMIT_S, grace_s: float = GRACE_S) -> None:
        self.base, self.limit_s, self.grace_s = folder.absolute() / "base", limit_s, grace_s
        self._readers, self._worker = readers, 0
        self.counts: dict[str, Counts] = {}

    def __enter__(self) -> Fuzzer:
        self.base.mkdir(parents=True)
        self._log = (self.base.parent / "child.log").open("wb")
        self.sentinels = Sentinels(self.base)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fuzz.child", str(self.base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment(),
            bufsize=0,
        )
        self._buffer = b""
        self.templates: dict[str, Any] = self._answer(START_S)["templates"]
        self._await_worker()
        self.hub = HostileHub(self.base.parent / "hub", self.base / "templates")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()  # the worker ends, and the child with it
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._kill_worker()
        self.hub.stop()
        self.sentinels.close()
        self._log.close()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "M3DT_"))}
        ours = {
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "HOME": str(self.base / HOME),
            "TMPDIR": str(self.base / BOX / "tmp"),
            "XDG_CACHE_HOME": str(self.base / BOX / "out" / "user-cache"),  # where packs go if their own folder takes none
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",  # an arena of a thread counts as 64 MB of mapped memory
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "M3DT_HUB_TIMEOUT": "2",
            "M3DT_FUZZ_READERS": self._readers or "",
        }
        return kept | ours

    def run(self, recipe: Recipe) -> Outcome:
        """Makes the input and reads it. What was too slow is tried once more: the machine may have been busy."""
        outcome = self._run(recipe)
        if outcome.kind in ("slow", "hang"):
            outcome = self._run(recipe)
        self.counts.setdefault(recipe["reader"], Counts()).add(outcome)
        return outcome

    def _run(self, recipe: Recipe) -> Outcome:
        recipe = {"limit_s": self.limit_s, **recipe, "endpoint": self.hub.endpoint}
        self.hub.prepare(recipe)
        self.sentinels.forget()
        start = time.perf_counter()
        found = self._ask(recipe)
        seen = [*found.get("seen", ()), *self.sentinels.changes(), *self.hub.complaints()]
        if any(edit.get("kind") in LINKED for edit in recipe.get("edits", ())):
            seen = [what for what in seen if not what.startswith(READ)]
        return Outcome(
            found["outcome"],
            found["text"],
            found.get("seconds", time.perf_counter() - start),
            found.get("peak_mb", 0.0),
            tuple(seen),
        )

    def _ask(self, recipe: Recipe) -> dict[str, Any]:
        assert self._child.stdin is not None
        most = recipe["limit_s"] + self.grace_s
        self._child.stdin.write(json.dumps(recipe).encode() + b"\n")
        try:
            found = self._answer(most)
        except TimeoutError:
            self._kill_worker()
            self._answer(START_S)
            self._await_worker()
            return {"outcome": "hang", "text": f"not done after {most:g} s, and not to be interrupted"}
        if "died" in found:
            self._await_worker()
            return {"outcome": "crash", "text": f"{describe_status(found['died'])}\n{self._said()}"}
        return found

    def _said(self) -> str:
        """The last words of the child."""
        return Path(self._log.name).read_text(errors="replace")[-SHOWN_OF_LOG:]

    def _await_worker(self) -> None:
        found = self._answer(START_S)
        if "pid" not in found:
            raise RuntimeError(f"the child cannot start a worker: {found}\n{self._said()}")
        self._worker = found["pid"]

    def _kill_worker(self) -> None:
        if self._worker:
            os.kill(self._worker, signal.SIGKILL)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                data = os.read(self._child.stdout.fileno(), 1 << 16)
                if not data:
                    raise RuntimeError(f"the child is gone\n{self._said()}")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))


def describe_status(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"the process was ended by signal {os.WTERMSIG(status)} ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"the process ended with code {os.WEXITSTATUS(status)}"
