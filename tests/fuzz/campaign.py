"""Runs of many recipes: until the time or the number is over, with every finding kept, and the first one shrunk if asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz import recipes
from fuzz.harness import Fuzzer, Outcome
from fuzz.hub_answers import sample_answers

READERS = ("banks", "datasets", "published", "hub")
BATCH = 100
KEEP = os.environ.get("M3DT_FUZZ_KEEP", "build/fuzz")

Recipe = dict[str, Any]


@dataclass
class Campaign:
    """What to run, and what came of it.

    inputs, seconds: when it is over; None: no such limit. shrink: stop at the first finding and look for its smallest recipe.
    """

    fuzzer: Fuzzer
    reader: str
    start_seed: int
    inputs: int | None = None
    seconds: float | None = None
    shrink: bool = False
    findings: dict[str, tuple[Recipe, Outcome]] = field(default_factory=dict)
    done: int = 0

    def run(self) -> dict[str, tuple[Recipe, Outcome]]:
        """Findings by what they have in common: the smallest of each kind."""
        strategy, deadline = self._strategy(), None if self.seconds is None else time.monotonic() + self.seconds
        batch = 0
        while not self._over(deadline) and not (self.shrink and self.findings):
            self._run_batch(strategy, self.start_seed * 1000 + batch, deadline)
            batch += 1
        return self.findings

    def _strategy(self) -> Any:
        templates = self.fuzzer.templates
        if self.reader == "hub":
            return recipes.hub(templates, sample_answers(self.fuzzer.hub))
        makers: dict[str, Callable[[Any], Any]] = {
            "banks": recipes.banks,
            "datasets": recipes.datasets,
            "published": recipes.published,
        }
        return makers[self.reader](templates)

    def _over(self, deadline: float | None) -> bool:
        return (self.inputs is not None and self.done >= self.inputs) or (deadline is not None and time.monotonic() > deadline)

    def _run_batch(self, strategy: Any, number: int, deadline: float | None) -> None:
        phases = (Phase.generate, Phase.shrink) if self.shrink else (Phase.generate,)
        size = BATCH if self.inputs is None else min(BATCH, self.inputs - self.done)

        @seed(number)
        @settings(max_examples=size, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def one(recipe: Recipe) -> None:
            if not self.findings and self._over(deadline):
                return  # the rest of the batch; a finding is shrunk to its end
            outcome = self.fuzzer.run(recipe)
            self.done += 1
            if outcome.finding:
                self._note(recipe, outcome)
                if self.shrink:
                    raise FoundError

        try:
            one()
        except FoundError:
            return

    def _note(self, recipe: Recipe, outcome: Outcome) -> None:
        kind = signature(outcome)
        known = self.findings.get(kind)
        if known is None or len(json.dumps(recipe)) <= len(json.dumps(known[0])):
            self.findings[kind] = (recipe, outcome)


class FoundError(Exception):
    """There is a finding; Hypothesis looks for a smaller recipe of it."""


def signature(outcome: Outcome) -> str:
    """What findings of one kind have in common: the last place in our code and the error, without numbers and names."""
    text = outcome.finding
    places = re.findall(r'File "[^"]*/((?:m3dt_agent|hub)/[^"]+)", line \d+, in (\w+)', text)
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    last = last if places or outcome.kind in ("value", "error", "raw", "memory") else text.splitlines()[0]
    general = re.sub(r"[0-9]+|'[^']*'|/\S+", "…", last)[:90]
    return f"{outcome.kind} {'.'.join(places[-1]) if places else ''} {general}"


def keep(findings: dict[str, tuple[Recipe, Outcome]], folder: Path = Path(KEEP)) -> list[Path]:
    """Writes each finding's recipe and outcome to a file, for `python -m fuzz replay`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, (recipe, outcome) in findings.items():
        path = folder / f"{recipe['reader']}-{hashlib.sha256(kind.encode()).hexdigest()[:10]}.json"
        path.write_text(json.dumps({"recipe": recipe, "kind": kind, "finding": outcome.finding}, indent=1))
        paths.append(path)
    return paths
