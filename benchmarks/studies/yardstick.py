"""Counts the samples until a transformer, alone on one task, scores what a plain network does.

    python -m benchmarks.studies.yardstick OUT --datasets ROOT [--tasks NAME…] [--arms NAME…] [--json FILE] [--workers N]

The plain network has two hidden layers of 256 (ReLU, then tanh), sees one normalized observation and is trained by AdamW on the
squared error. Every arm is trained anew to each number of samples, on the same batches, and plays the same episodes. The mark
is what the plain network scores at its best, less a tenth; between two numbers of samples, their logarithm is interpolated.
Results are kept under OUT, and a killed study continues when called again.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import TaskStatistics, compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.evaluation import evaluate, read_rows, write_rows
from m3dt_agent.model.determinism import cpu_threads, seeded
from m3dt_agent.scores import summarize
from m3dt_agent.tasks import TaskSpec, padded_widths

from ..perf.frame import add_options, begin, finish, table_wanted
from ..runs.data import prepare, require_disjoint
from .curves import EVAL_SEED, Arm, Study, run_arm

TASKS = ("pendulum-swingup", "hopper-stand", "reacher-hard", "cartpole-swingup-sparse")
PLAIN = "plain, 2 x 256"
BATCH = 128
RECIPE = Arm(
    context_length=1,
    prompt_length=2,
    condition="best",
    batch_size=BATCH,
    dropout=0.0,
    precision="float32",
    grad_clip=10.0,
    use_returns=False,
    use_timesteps=False,
    use_embed_norm=False,
    embedding_std=0.2,
    block_std=0.06,
    decay=True,
)
ARMS: Mapping[str, Arm] = {
    "transformer": RECIPE,
    "clipped at 0.25": replace(RECIPE, grad_clip=0.25),
    "with the norm of tokens": replace(RECIPE, use_embed_norm=True),
    "first weights 0.02": replace(RECIPE, embedding_std=0.02, block_std=0.02),
    "norm, first weights 0.02": replace(RECIPE, use_embed_norm=True, embedding_std=0.02, block_std=0.02),
    "learning rate 3e-3": replace(RECIPE, learning_rate=3e-3),
    "with returns and timesteps": replace(RECIPE, use_returns=True, use_timesteps=True),
    "context 8": replace(RECIPE, context_length=8),
}
SAMPLES = (16_000, 32_000, 64_000, 128_000, 256_000, 512_000)
SHARE = 0.9
"""Of the plain network's best score: what must be reached."""


@dataclass(frozen=True, slots=True)
class Row:
    """An arm on one task. scores: after each number of samples. needed: samples until the mark; None: more than the last.

    ratio: `needed` to the plain network's.
    """

    task: str
    arm: str
    scores: dict[int, float]
    needed: float | None
    ratio: float | None


class Plain:
    """The plain network, as a policy that `evaluate` takes."""

    name, bank_hash = PLAIN, ""

    def __init__(self, task: TaskSpec, statistics: TaskStatistics) -> None:
        self._task, self._statistics = task, statistics
        widths = (task.obs_dim, 256, 256)
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        self.network = nn.Sequential(*hidden, nn.Linear(256, task.act_dim), nn.Tanh())

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._act_width = padded_widths(tasks)[1]

    def act(
        self,
        obs: npt.NDArray[np.float32],
        *,
        reward: npt.NDArray[np.float64] | None,
        reset_mask: npt.NDArray[np.bool_],
        active: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        states = self._statistics.normalize(obs[:, : self._task.obs_dim])
        actions = np.zeros((len(obs), self._act_width), np.float32)
        with torch.no_grad():
            actions[:, : self._task.act_dim] = self.network(torch.from_numpy(states)).numpy()
        return actions

    def learn(self, sampler: BatchSampler, steps: int, learning_rate: float = 1e-3) -> None:
        """Trains for so many batches; in the last fifth the rate falls to 0."""
        optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, weight_decay=1e-4)
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / (steps // 5)))
        obs_dim, act_dim = self._task.obs_dim, self._task.act_dim
        for step in range(steps):
            batch = sampler.sample(step)
            wanted = batch.window.actions if batch.labels is None else batch.labels
            found: Tensor = self.network(batch.window.states[:, -1, :obs_dim])
            loss = nn.functional.mse_loss(found, wanted[:, -1, :act_dim])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            fall.step()


def plain_scores(study: Study, data: TaskDatasets, out: Path, workers: int | None) -> dict[int, float]:
    """Number of samples → score of the plain network. Those that were measured before are read from `out`."""
    out.mkdir(parents=True, exist_ok=True)
    statistics, task = compute_statistics(data), data.tasks[0]
    config = ModelConfig(8, 1, 1, n_experts=0, context_length=1, prompt_length=1).for_tasks(data.tasks)
    sampler = BatchSampler(
        data,
        statistics,
        make_prompts(data, config.prompt_length),
        config,
        batch_size=BATCH,
        tasks_per_batch=None,
        seed=0,
        stage="backbone",
    )
    scores = {}
    for steps in study.steps:
        file = out / f"rows-{steps}.jsonl"
        if not file.exists():
            with cpu_threads(1), seeded(0, torch.device("cpu")):
                policy = Plain(task, statistics[task.name])
                policy.learn(sampler, steps)
                evaluation = EvalConfig(study.episodes, EVAL_SEED, slots=32, workers=workers, stop_on_success=True)
                write_rows(file, evaluate(policy, [task], evaluation, progress=False))
        scores[steps * BATCH] = summarize(read_rows(file)).mean_score
    return scores


def needed(scores: Mapping[int, float], mark: float) -> float | None:
    """The number of samples at which `scores` first reach `mark`, interpolated; None if they never do."""
    before: tuple[int, float] | None = None
    for samples, score in scores.items():
        if score >= mark:
            if before is None:
                return float(samples)
            part = (mark - before[1]) / (score - before[1])
            return math.exp(math.log(before[0]) + part * (math.log(samples) - math.log(before[0])))
        before = (samples, score)
    return None


def measure(
    task: str, arms: Sequence[str], samples: Sequence[int], out: Path, datasets: Path, workers: int | None
) -> list[Row]:
    """The rows of one task, the plain network's first."""
    study = Study("yardstick", (task,), ARMS, tuple(count // BATCH for count in samples))
    require_disjoint([task], RECIPE.demonstrations, 0, EVAL_SEED, study.episodes)
    data = prepare(datasets, [task], RECIPE.condition, RECIPE.demonstrations, 0, workers)
    found = {PLAIN: plain_scores(study, data, out / task / "plain", workers)}
    for arm in arms:
        points = run_arm(study, arm, out / task, datasets, workers)
        found[arm] = {point.windows: point.score for point in points}
    mark = SHARE * max(found[PLAIN].values())
    yardstick = needed(found[PLAIN], mark)
    assert yardstick is not None  # its best score is above the mark
    rows = []
    for arm, scores in found.items():
        samples_needed = needed(scores, mark)
        ratio = None if samples_needed is None else samples_needed / yardstick
        rows.append(Row(task, arm, scores, samples_needed, ratio))
    return rows


def show(rows: Sequence[Row]) -> None:
    """Prints the rows as a table."""
    for row in rows:
        scores = "  ".join(f"{samples // 1000}k {score:5.1f}" for samples, score in row.scores.items())
        ratio = "never" if row.ratio is None else f"{row.ratio:5.2f} x"
        print(f"{row.task:24s} {row.arm:28s} {ratio:>8s}   {scores}", flush=True)


def main() -> None:
    """Parses the command line, runs the study and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="NAME")
    parser.add_argument("--samples", nargs="+", type=int, default=list(SAMPLES))
    parser.add_argument("--workers", type=int, default=None)
    add_options(parser)
    arguments = parser.parse_args()
    record = begin("yardstick", tasks=arguments.tasks, arms={name: asdict(ARMS[name]) for name in arguments.arms})
    found: list[Row] = []
    for task in arguments.tasks:
        rows = measure(task, arguments.arms, arguments.samples, arguments.out, arguments.datasets, arguments.workers)
        if table_wanted(arguments.json):
            show(rows)
        found += rows
        finish(record, found, json_path=arguments.json if table_wanted(arguments.json) else None)
    finish(record, found, json_path=arguments.json)


if __name__ == "__main__":
    main()
