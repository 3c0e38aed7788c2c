"""What studies of training share: arms that are trained to some numbers of steps and evaluated at each.

    python -m benchmarks.studies.<study> OUT --datasets ROOT [--arms NAME…] [--json FILE] [--workers N]

Every arm is one backbone, alone on `threads` cores. It is trained to the first of its numbers of steps, evaluated, trained on
to the next, and so on; all arms play the same episodes. Results are kept under OUT, and a killed study continues when called
again. Several processes with different `--arms` may share OUT.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from m3dt_agent import tasks as task_table
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import BackboneConfig, EvalConfig, ModelConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.evaluation import AgentPolicy, EpisodeResult, evaluate, read_rows, write_rows
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.scores import summarize
from m3dt_agent.training.logs import log_file, read_log

from ..experiments.budgets import parameter_count, step_flop
from ..perf.frame import add_options, begin, finish, table_wanted
from ..runs.data import prepare, require_disjoint

EVAL_SEED = 10_000


@dataclass(frozen=True, slots=True)
class Arm:
    """One backbone and its training; the fields are those of `ModelConfig` and `BackboneConfig`, unless said otherwise.

    condition, demonstrations: of the data, see `runs.data.prepare`.
    decay: the learning rate falls to 0 in the last fifth of the steps, so each number of steps is a training of its own.
    steps: None: the study's.
    """

    embed_dim: int = 128
    n_layers: int = 3
    context_length: int = 8
    prompt_length: int = 5
    condition: str = "expert"
    demonstrations: int = 60
    batch_size: int = 64
    tasks_per_batch: int | None = None
    learning_rate: float = 1e-3
    threads: int = 1
    domain_weights: Mapping[str, int] = field(default_factory=dict)
    dropout: float = 0.1
    use_returns: bool = True
    use_timesteps: bool = True
    use_embed_norm: bool = True
    grad_clip: float = 0.25
    embedding_std: float = 0.02
    block_std: float = 0.02
    ema: float = 0.0
    truncate_history: float = 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    decay: bool = False
    steps: tuple[int, ...] | None = None

    @property
    def model(self) -> ModelConfig:
        """The shape of the model, which has no experts."""
        return ModelConfig(
            *(self.embed_dim, self.n_layers, 4, 0, self.context_length, self.prompt_length),
            dropout=self.dropout,
            use_returns=self.use_returns,
            use_timesteps=self.use_timesteps,
            use_embed_norm=self.use_embed_norm,
        )

    def training(self, steps: int) -> BackboneConfig:
        """The training to `steps` steps."""
        return BackboneConfig(
            steps=steps,
            batch_size=self.batch_size,
            tasks_per_batch=self.tasks_per_batch,
            learning_rate=self.learning_rate,
            grad_clip=self.grad_clip,
            warmup_steps=100,
            cooldown_steps=steps // 5 if self.decay else 0,
            domain_weights=self.domain_weights,
            truncate_history=self.truncate_history,
            ema=self.ema,
            precision=self.precision,
            threads=self.threads,
            checkpoint_every=500,
            log_every=50,
            embedding_std=self.embedding_std,
            block_std=self.block_std,
        )


@dataclass(frozen=True, slots=True)
class Study:
    """Arms, the tasks they learn, after how many steps they are evaluated, and on how many episodes of each task."""

    name: str
    tasks: tuple[str, ...]
    arms: Mapping[str, Arm]
    steps: tuple[int, ...]
    episodes: int = 10


@dataclass(frozen=True, slots=True)
class Point:
    """An arm after `steps` steps.

    minutes: core-minutes of training. loss: of training, over the last logged steps; it varies less than the score.
    score: mean normalized score. interval: 95%, over episodes. domains, tasks: name → score.
    """

    arm: str
    steps: int
    windows: int
    minutes: float
    loss: float
    tflop: float
    parameters: int
    score: float
    interval: tuple[float, float]
    domains: dict[str, float]
    tasks: dict[str, float]


def run_arm(study: Study, name: str, out: Path, datasets: Path, workers: int | None) -> list[Point]:
    """The points of one arm. Those that were measured before are read from `out`."""
    arm = study.arms[name]
    folder = out / "".join(letter for letter in name.replace(" ", "-") if letter.isalnum() or letter in "-.")
    require_disjoint(study.tasks, arm.demonstrations, 0, EVAL_SEED, study.episodes)
    data = prepare(datasets, study.tasks, arm.condition, arm.demonstrations, 0, workers)
    points = []
    for steps in arm.steps or study.steps:
        bank = folder / (f"bank-{steps}" if arm.decay else "bank")
        rows = _rows(study, arm, data, bank, folder / f"rows-{steps}.jsonl", steps, workers)
        points.append(_point(name, arm, steps, _log_row(bank, steps), rows))
    return points


def _rows(
    study: Study, arm: Arm, data: TaskDatasets, bank: Path, file: Path, steps: int, workers: int | None
) -> list[EpisodeResult]:
    if not file.exists():
        agent = M3DTAgent(arm.model.for_tasks(data.tasks), data.tasks)
        agent.fit_stage("backbone", data, bank=bank, config=arm.training(steps))
        evaluation = EvalConfig(study.episodes, EVAL_SEED, slots=32, workers=workers, stop_on_success=True)
        with cpu_threads(arm.threads):
            write_rows(file, evaluate(AgentPolicy(agent), study.tasks, evaluation))
    return read_rows(file)


def _log_row(bank: Path, steps: int) -> Mapping[str, str]:
    """The row that training logged after `steps` steps."""
    return next(row for row in read_log(log_file(bank, "backbone")) if int(row["step"]) == steps)


def _point(name: str, arm: Arm, steps: int, logged: Mapping[str, str], rows: Sequence[EpisodeResult]) -> Point:
    summary = summarize(rows)
    of_domain: dict[str, list[float]] = {}
    for task_name, task in summary.tasks.items():
        of_domain.setdefault(task_table.get(task_name).domain, []).append(task.mean_score)
    return Point(
        arm=name,
        steps=steps,
        windows=steps * arm.batch_size,
        minutes=float(logged["seconds"]) / 60 * arm.threads,
        loss=float(logged["loss"]),
        tflop=steps * step_flop(arm.model, "backbone", arm.batch_size) / 1e12,
        parameters=parameter_count(arm.model),
        score=summary.mean_score,
        interval=summary.mean_interval,
        domains={domain: float(np.mean(scores)) for domain, scores in of_domain.items()},
        tasks={task_name: task.mean_score for task_name, task in summary.tasks.items()},
    )


def show(points: Sequence[Point]) -> None:
    """Prints the points as a table."""
    for p in points:
        domains = "  ".join(f"{domain} {score:5.1f}" for domain, score in p.domains.items())
        low, high = p.interval
        cost = f"{p.steps:7,} steps {p.minutes:6.1f} core-min {p.tflop:8.1f} TFLOP"
        print(f"{p.arm:36s} {cost}  loss {p.loss:.4f}  {p.score:5.1f} [{low:.1f}, {high:.1f}]  {domains}", flush=True)


def main(study: Study, description: str | None) -> None:
    """Parses the command line, runs the study and prints the result."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=list(study.arms), default=list(study.arms), metavar="NAME")
    parser.add_argument("--workers", type=int, default=None)
    add_options(parser)
    arguments = parser.parse_args()
    chosen = {name: dataclasses.asdict(study.arms[name]) for name in arguments.arms}
    record = begin(study.name, tasks=study.tasks, arms=chosen)
    points: list[Any] = []
    for name in arguments.arms:
        found = run_arm(study, name, arguments.out, arguments.datasets, arguments.workers)
        if table_wanted(arguments.json):
            show(found)
        points += found
        finish(record, points, json_path=arguments.json if table_wanted(arguments.json) else None)
    finish(record, points, json_path=arguments.json)
