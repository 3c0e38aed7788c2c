"""Measures score against training FLOP for backbones of several sizes, contexts and data, to choose one for a long training.

    python -m benchmarks.studies.learning_curves OUT --datasets ROOT [--arms NAME…] [--json FILE] [--workers N]

There are 20 tasks in the proportions of the 160: six Meta-World, four DMControl, five ant-dir, five cheetah-vel. Every arm is
one backbone. It is trained to the first of STEPS, evaluated, trained on to the next, and so on; all arms play the same
episodes. An arm differs from the first one in what its name says. Results are kept under OUT, and a killed study continues when
called again. Several processes with different `--arms` may share OUT.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m3dt_agent import tasks as task_table
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig, train_preset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.evaluation import AgentPolicy, EpisodeResult, evaluate, read_rows, write_rows
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.scores import summarize

from ..experiments.budgets import parameter_count, step_flop
from ..perf.frame import add_options, begin, finish, table_wanted
from ..runs.data import prepare, require_disjoint

TASKS = (
    *("coffee-button", "dial-turn", "door-lock", "handle-press", "plate-slide-side", "peg-unplug-side"),
    *("walker-walk", "reacher-easy", "finger-turn-hard", "cheetah-run-back"),
    *("ant-dir-0", "ant-dir-3", "ant-dir-11", "ant-dir-16", "ant-dir-30"),
    *("cheetah-vel-0", "cheetah-vel-5", "cheetah-vel-13", "cheetah-vel-22", "cheetah-vel-30"),
)
STEPS = (1_000, 3_000, 9_000)
EPISODES, EVAL_SEED = 10, 10_000


@dataclass(frozen=True, slots=True)
class Arm:
    """One backbone and its training.

    condition, demonstrations: of the data, see `runs.data.prepare`. batch_size: windows per step, from all tasks.
    """

    embed_dim: int = 128
    n_layers: int = 3
    context_length: int = 8
    prompt_length: int = 5
    condition: str = "expert"
    demonstrations: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    threads: int = 1
    domain_weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def model(self) -> ModelConfig:
        """The shape of the model, which has no experts."""
        return ModelConfig(self.embed_dim, self.n_layers, 4, 0, self.context_length, self.prompt_length)


ARMS: Mapping[str, Arm] = {
    "128 wide, 3 layers": Arm(),
    "64 wide": Arm(embed_dim=64),
    "192 wide, 4 layers": Arm(embed_dim=192, n_layers=4, learning_rate=5e-4),
    "context 20": Arm(context_length=20),
    "mixture": Arm(condition="mixture"),
    "30 demonstrations": Arm(demonstrations=30),
    "learning rate 3e-4": Arm(learning_rate=3e-4),
    "best": Arm(condition="best"),
    "harder domains more often": Arm(domain_weights={"dmcontrol": 3, "metaworld": 2}),
}


@dataclass(frozen=True, slots=True)
class Point:
    """An arm after `steps` steps. score: mean normalized score. interval: 95%, over episodes. domains: domain → score."""

    arm: str
    steps: int
    tflop: float
    parameters: int
    score: float
    interval: tuple[float, float]
    domains: dict[str, float]


def run_arm(name: str, out: Path, datasets: Path, workers: int | None) -> list[Point]:
    """The points of one arm. Those that were measured before are read from `out`."""
    arm = ARMS[name]
    folder = out / name.replace(" ", "-").replace(",", "")
    require_disjoint(TASKS, arm.demonstrations, 0, EVAL_SEED, EPISODES)
    data = prepare(datasets, TASKS, arm.condition, arm.demonstrations, 0, workers)
    return [_point(name, arm, steps, _rows(arm, data, folder, steps, workers)) for steps in STEPS]


def _rows(arm: Arm, data: TaskDatasets, folder: Path, steps: int, workers: int | None) -> list[EpisodeResult]:
    file = folder / f"rows-{steps}.jsonl"
    if not file.exists():
        settings: dict[str, Any] = {"steps": steps, "batch_size": arm.batch_size, "learning_rate": arm.learning_rate}
        settings |= {"warmup_steps": 100, "threads": arm.threads, "checkpoint_every": 500, "precision": "bfloat16"}
        settings["domain_weights"] = arm.domain_weights
        config = train_preset("small", "backbone", **settings)
        agent = M3DTAgent(arm.model, data.tasks)
        agent.fit_stage("backbone", data, bank=folder / "bank", config=config)
        with cpu_threads(arm.threads):
            write_rows(file, evaluate(AgentPolicy(agent), TASKS, _evaluation(workers)))
    return read_rows(file)


def _evaluation(workers: int | None) -> EvalConfig:
    return EvalConfig(EPISODES, EVAL_SEED, slots=32, workers=workers, stop_on_success=True)


def _point(arm_name: str, arm: Arm, steps: int, rows: Sequence[EpisodeResult]) -> Point:
    summary = summarize(rows)
    of_domain: dict[str, list[float]] = {}
    for name, task in summary.tasks.items():
        of_domain.setdefault(task_table.get(name).domain, []).append(task.mean_score)
    return Point(
        arm=arm_name,
        steps=steps,
        tflop=steps * step_flop(arm.model, "backbone", arm.batch_size) / 1e12,
        parameters=parameter_count(arm.model),
        score=summary.mean_score,
        interval=summary.mean_interval,
        domains={domain: float(np.mean(scores)) for domain, scores in of_domain.items()},
    )


def show(points: Sequence[Point]) -> None:
    """Prints the points as a table."""
    for p in points:
        domains = "  ".join(f"{domain} {score:5.1f}" for domain, score in p.domains.items())
        low, high = p.interval
        print(f"{p.arm:22s} {p.steps:7,} steps {p.tflop:9.1f} TFLOP  {p.score:5.1f} [{low:.1f}, {high:.1f}]  {domains}")


def main() -> None:
    """Parses the command line, runs the study and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="NAME")
    parser.add_argument("--workers", type=int, default=None)
    add_options(parser)
    arguments = parser.parse_args()
    record = begin("learning_curves", tasks=TASKS, arms={name: dataclasses.asdict(ARMS[name]) for name in arguments.arms})
    points: list[Any] = []
    for name in arguments.arms:
        found = run_arm(name, arguments.out, arguments.datasets, arguments.workers)
        if table_wanted(arguments.json):
            show(found)
        points += found
    finish(record, points, json_path=arguments.json)


if __name__ == "__main__":
    main()
