"""Runs a stage again and again, killed by SIGKILL at chosen events, and continues it; started by test_kill.py.

    python killed_run.py FOLDER SEED N_RANDOM STAGE...

An event is a training step, an optimizer update, a piece written to a safetensors file, a flush, or a rename; all are counted.
This process imports everything, never trains, and forks a child for each run: forking is 20 times faster than starting Python.
It prints one JSON object per stage: what the uninterrupted run left, and what each killed and continued one did.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sklearn.cluster  # noqa: F401  what runs import late is imported here, once, before forking
import torch
import torch._dynamo

from m3dt_agent.bank import ExpertBank, tensor_files
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig, TrainConfig
from m3dt_agent.training import fit_growth, fit_stage, growth_config, loop

spec = importlib.util.spec_from_file_location("made_up", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
made_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up)

SHARED: dict[str, Any] = {"steps": 12, "batch_size": 4, "checkpoint_every": 2, "log_every": 3, "warmup_steps": 5, "threads": 1}
CONFIGS: dict[str, TrainConfig] = {
    "backbone": BackboneConfig(**SHARED, conflict_every=5, ema=0.9, truncate_history=0.5),
    "experts": ExpertsConfig(**SHARED, experts_at_once=2, grouping_batches=1, grouping_runs=1),
    "router": RouterConfig(**SHARED, ema=0.5),
    "growth": growth_config(**SHARED, ema=0.5),
}
NEW = ("cup-catch", "ant-dir-9")
"""The tasks by which the bank of stage "growth" grows, with two experts."""


def counted(events: list[str], kill_at: int | None, journal: Path) -> None:
    """Patches this process: events go to `events`, training steps to `journal`, and nothing comes after event `kill_at`."""

    def happen(kind: str) -> None:
        if len(events) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        events.append(kind)

    def before(owner: Any, name: str, kind: str) -> None:
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            happen(kind)
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    serialized, step = tensor_files._serialized, loop.Trainer.step

    def pieces(tensors: Any) -> Iterator[Any]:
        for piece in serialized(tensors):
            half = len(piece) // 2
            yield piece[:half]
            happen("write")
            yield piece[half:]

    def journaled(self: loop.Trainer) -> None:
        happen("step")
        with journal.open("a") as file:
            file.write(f"{self.run.name} {self.step_count}\n")
        step(self)

    tensor_files._serialized = pieces
    loop.Trainer.step = journaled  # type: ignore[method-assign]
    before(torch.optim.AdamW, "step", "update")
    for name in ("replace", "rename", "fsync"):
        before(os, name, name)


def forked(action: Callable[[], None]) -> int:
    """The wait status of a child that does `action`."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def train(bank: Path, stage: str, kill_at: int | None = None, report: Path | None = None) -> int:
    def action() -> None:
        events: list[str] = []
        counted(events, kill_at, bank.with_suffix(".journal"))
        if stage == "growth":
            fit_growth(made_up.made_up_data(NEW), ExpertBank.open(bank), growth_config(**SHARED, ema=0.5), progress=False)
        else:
            fit_stage(stage, made_up.made_up_data(), ExpertBank.open(bank), CONFIGS[stage], progress=False)
        if report is not None:
            report.write_text(json.dumps(events))

    return forked(action)


def prepare(bank: Path, stage: str) -> None:
    def action() -> None:
        data = made_up.made_up_data()
        if stage == "growth":
            fresh = made_up.new_bank(bank.with_name("old"), data)
            fit_stage("backbone", data, fresh, CONFIGS["backbone"], progress=False)
            fresh.grown(bank, made_up.made_up_data(NEW), experts=2)
            return
        fresh = made_up.new_bank(bank, data)
        for earlier, config in CONFIGS.items():
            if earlier == stage:
                return
            fit_stage(earlier, data, fresh, config, progress=False)

    assert forked(action) == 0


def public_hashes(bank: Path) -> dict[str, str]:
    files = [*bank.glob("*.safetensors"), *bank.glob("experts/*"), *bank.glob("grown/*"), bank / "bank.json"]
    return {str(file.relative_to(bank)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def outcome(bank: Path) -> dict[str, Any]:
    """Hashes of all public files, the log without its last column (seconds), the steps done, and what lies around."""
    stages = {log.stem: [row.rpartition(",")[0] for row in log.read_text().splitlines()] for log in bank.glob("logs/*.csv")}
    leftovers = [str(path) for path in bank.rglob("*") if ".next" in path.name or path.name.startswith(".writing")]
    return {
        "files": public_hashes(bank),
        "logs": stages,
        "steps": bank.with_suffix(".journal").read_text().splitlines(),
        "leftovers": leftovers,
    }


def chosen_points(events: list[str], n_random: int, rng: random.Random) -> dict[str, list[int]]:
    """Where to kill: in the write of a checkpoint, between two renames that end the stage, twice in a row, and anywhere."""
    renames = [i for i, kind in enumerate(events) if kind in ("replace", "rename")]
    writes = [i for i, kind in enumerate(events) if kind == "write" and i < renames[-4]]
    first, last = rng.choice(writes), renames[-1]
    points = {"checkpoint": [first], "end": [last], "commit": [rng.choice([i for i in renames if i > writes[-1]][1:])]}
    points["twice"] = [rng.randrange(len(events) // 2), rng.randrange(len(events) // 4)]
    return points | {f"random {i}": [rng.randrange(len(events))] for i in range(n_random)}


def main(folder: Path, stage: str, seed: int, n_random: int) -> None:
    prepare(folder / "prepared", stage)
    shutil.copytree(folder / "prepared", folder / "whole")
    assert train(folder / "whole", stage, report=folder / "events.json") == 0
    events = json.loads((folder / "events.json").read_text())
    results = {}
    for name, points in chosen_points(events, n_random, random.Random(seed)).items():
        bank = folder / name
        shutil.copytree(folder / "prepared", bank)
        statuses = [train(bank, stage, kill_at=point) for point in points]
        assert train(bank, stage) == 0, (name, points)
        at = [events[point] for point in points]
        results[name] = {"points": points, "at": at, "killed": [os.WIFSIGNALED(s) for s in statuses], **outcome(bank)}
    print(json.dumps({"stage": stage, "whole": outcome(folder / "whole"), "events": len(events), "killed": results}))


if __name__ == "__main__":
    for chosen in sys.argv[4:]:
        main(Path(sys.argv[1]) / chosen, chosen, int(sys.argv[2]), int(sys.argv[3]))
