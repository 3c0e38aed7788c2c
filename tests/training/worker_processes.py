"""Forks workers that train together; test_distributed.py starts it, writes one JSON object a line, and reads one back.

    {"action": "fit", "size": 2, "arguments": {…}}  →  {"statuses": [0, 0], "said": ["…", "…"]}

A worker is a fork of this process, which has imported everything and never trains, with what torchrun sets in its environment.
A status is what the worker exits with: 0, 1 after an exception (the last line of `said` names it), or -9 if it was killed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sklearn.cluster  # noqa: F401  what runs import late is imported here, once, before forking
import torch
import torch._dynamo
import torch.distributed as dist

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig, TrainConfig
from m3dt_agent.training import backbone, checkpoint, fit_stage, group_tasks, loop
from m3dt_agent.training.distributed import joined
from m3dt_agent.training.run import Run, StepHooks
from m3dt_agent.training.stage_inputs import StageInputs

spec = importlib.util.spec_from_file_location("made_up", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
made_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up)

CONFIGS: dict[str, type[TrainConfig]] = {"backbone": BackboneConfig, "experts": ExpertsConfig, "router": RouterConfig}


def fit(bank: str, stage: str, config: dict[str, Any] | None) -> None:
    made = None if config is None else CONFIGS[stage](**config)
    fit_stage(stage, made_up.made_up_data(), ExpertBank.open(bank), made)


def group(bank: str) -> None:
    print(json.dumps(group_tasks(made_up.made_up_data(), ExpertBank.open(bank), ExpertsConfig(steps=1, grouping_batches=1))))


def fit_and_write(bank: str, stage: str, config: dict[str, Any]) -> None:
    """`fit`, which says who wrote: checkpoints, commits and lines of logs."""
    commit, write = ExpertBank.commit, checkpoint.write_tensors
    ExpertBank.commit = lambda *a, **k: (print("commit"), commit(*a, **k))[1]  # type: ignore[assignment,func-returns-value]
    checkpoint.write_tensors = lambda *a: (print("checkpoint"), write(*a))[1]  # type: ignore[func-returns-value]
    made = CONFIGS[stage](**config)
    fit_stage(stage, made_up.made_up_data(), ExpertBank.open(bank), made, on_log=lambda _: print("log"))


def die_at(bank: str, config: dict[str, Any], rank: int, step: int, how: str) -> None:
    """Worker `rank` is killed before a step, or its program goes on to other things after an exception there."""
    original = loop.Trainer.step

    def patched(self: loop.Trainer) -> None:
        if (self.world.rank, self.step_count) == (rank, step):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError
        original(self)

    loop.Trainer.step = patched  # type: ignore[method-assign]
    try:
        fit(bank, "backbone", config)
    except ZeroDivisionError:
        time.sleep(5)
        print("ended at", time.monotonic())


class Halving(StepHooks):
    """Halves some gradients where a count of its own is odd: right only if gradients and count are the same everywhere."""

    def __init__(self, run: Run) -> None:
        self.run, self.count = run, torch.zeros((), dtype=torch.int64)

    def before_update(self) -> None:
        norm = sum(float(p.grad.square().sum()) for p in self.run.parameters.values() if p.grad is not None) ** 0.5
        assert norm <= self.run.config.grad_clip * 1.001
        grad = self.run.parameters["predict_action.weight"].grad
        assert grad is not None
        grad.mul_(0.5 if int(self.count) % 2 else 1.0)

    def after_update(self, step: int) -> None:
        self.count += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"count": self.count}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.count.copy_(tensors["count"])


def train_with_hooks(bank: str, folder: str, steps: list[int], config: dict[str, Any]) -> None:
    """The loop alone, to each of `steps` in turn, with hooks; every worker ends with the same weights and count."""
    opened = ExpertBank.open(bank)
    with joined("cpu") as world:
        for until in steps:
            run = next(
                backbone.runs(
                    StageInputs(data=made_up.made_up_data(), bank=opened, config=BackboneConfig(**config | {"steps": until}))
                )
            )
            run = Run(**{name: getattr(run, name) for name in Run.__slots__} | {"hooks": Halving(run)})
            loop.train(run, Path(folder), device="cpu", threads=1, progress=False, world=world)
            assert isinstance(run.hooks, Halving)
            assert int(run.hooks.count) == until
        weights = torch.cat([p.detach().flatten() for p in run.parameters.values()])
        mine = weights.clone()
        world.copy_from_main([weights])
        assert torch.equal(weights, mine)


ACTIONS = {action.__name__: action for action in (fit, group, fit_and_write, die_at, train_with_hooks)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def forked(action: str, arguments: dict[str, Any], environment: dict[str, str], said: Path) -> int:
    """The process id of a worker."""
    if child := os.fork():
        return child
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        torch.set_num_threads(1)
        ACTIONS[action](**arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
        print("ended at", time.monotonic())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        size = request["size"]
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, str(rank)) for rank in range(size)]
            children = [
                forked(request["action"], request["arguments"], shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, file)
                for rank, file in enumerate(files)
            ]
            statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            said = [file.read_text() for file in files]
        print(json.dumps({"statuses": statuses, "said": said}), flush=True)


if __name__ == "__main__":
    assert not dist.is_initialized()
    main()
