"""Continual learning: the 16 held-out tasks join a bank of the other 144, four at a time.

    python -m benchmarks.studies.continual OUT --datasets ROOT [--scale NAME] [--seeds N] [--json FILE] [--workers N]

    grown          the bank grows: a new expert for every four tasks, nothing that was there changes
    fine-tuned     the whole backbone is trained on with the data of the four tasks alone, as Prompt-DT would be
    without mask   as grown; then the router, widened for the new expert, is trained on with the data of the four tasks alone,
                   and every task acts with the mixture of all experts
    from scratch   a new backbone for the four tasks alone

All train for the same number of steps on the same data and play the same episodes. The measures are those of Continual World
(Wolczyk et al. 2021, arXiv 2105.10919, section 4), with scores of 0 to 100 where it has success rates. T is the end of all
training, T_i that of task i:

    average performance    mean over the 16 tasks of their score at T
    forgetting             mean over tasks of the score at T_i minus that at T; also of the 144, whose T_i is the bank before
    forward transfer       mean over the 16 of (A_i - B_i) / (100 - B_i) in percent, with A_i the area under the curve of the
                           score while task i is trained, and B_i that of training from scratch

Episodes are kept under OUT as they end. A study that is killed continues with the bank and the episodes that it has; it trains
its arms again, because their models are not kept.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank, is_bank
from m3dt_agent.config import BackboneConfig, EvalConfig, ExpertsConfig, ModelConfig, RouterConfig, Stage, TrainConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.evaluation import AgentPolicy, evaluate
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.tasks import task_set
from m3dt_agent.training import fit_stage
from m3dt_agent.training.stage_inputs import create_bank

from ..experiments.task_sets import HELD_OUT, HELD_OUT_PER_DOMAIN
from ..perf.frame import add_options, begin, finish, table_wanted
from ..runs.data import prepare, require_disjoint
from .continual_arms import ARMS, Increment, Learned, backbone_of

EVAL_SEED = 10_000
GROUPS = tuple(HELD_OUT[k::HELD_OUT_PER_DOMAIN] for k in range(HELD_OUT_PER_DOMAIN))
"""The held-out tasks that join together: one of each domain."""
RESAMPLES = 10_000
_LEAST_ROOM = 1.0
"""The least that training from scratch leaves to be gained, in points of score: scores may reach 100."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of a study. tasks: the first so many of the 144, None: all. increments: how many times four tasks join.

    steps: of an increment; the router of "without mask" has half as many more. stages: the settings of the bank of the 144.
    """

    model: ModelConfig
    stages: Mapping[Stage, TrainConfig]
    training: Mapping[str, Any]
    steps: int
    demonstrations: int
    episodes: int = 5
    old_episodes: int = 2
    tasks: int | None = None
    increments: int = 4
    condition: str = "expert"


_FAST: dict[str, Any] = {"batch_size": 128, "learning_rate": 1e-3, "grad_clip": 10.0, "warmup_steps": 100, "threads": 1}
_PAPER: dict[str, Any] = {"batch_size": 16, "learning_rate": 1e-4, "warmup_steps": 10_000, "threads": 1}
SCALES: Mapping[str, Scale] = {
    "smoke": Scale(
        model=ModelConfig(32, 2, 2, n_experts=2, context_length=1, prompt_length=2, dropout=0.0),
        stages={
            "backbone": BackboneConfig(steps=10, **_FAST),
            "experts": ExpertsConfig(steps=5, grouping="random", **_FAST),
            "router": RouterConfig(steps=5, **_FAST),
        },
        training=_FAST,
        steps=8,
        demonstrations=4,
        episodes=1,
        old_episodes=1,
        tasks=2,
        increments=2,
    ),
    "small": Scale(
        model=ModelConfig(128, 3, 4, n_experts=8, context_length=1, prompt_length=2, dropout=0.0),
        stages={
            "backbone": BackboneConfig(steps=3_000, cooldown_steps=600, **_FAST | {"batch_size": 256}),
            "experts": ExpertsConfig(steps=800, cooldown_steps=160, grouping="random", **_FAST),
            "router": RouterConfig(steps=400, cooldown_steps=80, guide=0.1, **_FAST),
        },
        training=_FAST,
        steps=800,
        demonstrations=24,
    ),
    "paper": Scale(
        model=ModelConfig.preset("paper", n_experts=40),
        stages={
            "backbone": BackboneConfig(steps=400_000, tasks_per_batch=1, **_PAPER),
            "experts": ExpertsConfig(steps=200_000, tasks_per_batch=1, **_PAPER),
            "router": RouterConfig(steps=400_000, tasks_per_batch=1, **_PAPER),
        },
        training=_PAPER,
        steps=200_000,
        demonstrations=1_000,
        episodes=25,
        old_episodes=25,
        condition="mixture",
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study reads and writes, and its scale."""

    out: Path
    datasets: Path
    scale: Scale
    workers: int | None

    def data(self, names: Sequence[str]) -> TaskDatasets:
        """The demonstrations of some tasks."""
        scale = self.scale
        return prepare(self.datasets, names, scale.condition, scale.demonstrations, 0, self.workers, stop_after_success=10)

    def scores(self, agent: M3DTAgent, names: Sequence[str], episodes: int, file: str) -> dict[str, float]:
        """Task → mean score of `names`; the episodes are kept in `<out>/rows/<file>.jsonl`."""
        config = EvalConfig(episodes, EVAL_SEED, slots=32, workers=self.workers, stop_on_success=True)
        with cpu_threads(1):
            rows = evaluate(AgentPolicy(agent), names, config, rows=self.out / "rows" / f"{file}.jsonl")
        return {name: float(np.mean([row.normalized_score for row in rows if row.task == name])) for name in names}


@dataclass(frozen=True, slots=True)
class Before:
    """The bank before the first task joins, and how it scores with its mixture and with its backbone alone.

    scores: of "mixture" and "backbone", by task.
    """

    bank: ExpertBank
    data: TaskDatasets
    scores: Mapping[str, Mapping[str, float]]

    def learned(self, arm: str) -> Learned:
        """What an arm begins with; its own copy."""
        model = self.bank.model()
        return Learned(backbone_of(model), [self.data]) if arm == "fine-tuned" else Learned(model, [self.data], "mixture")

    def of(self, arm: str) -> Mapping[str, float]:
        """The scores of what an arm begins with."""
        return self.scores["backbone" if arm == "fine-tuned" else "mixture"]


@dataclass(frozen=True, slots=True)
class Result:
    """One arm with one seed: by task, the score at T, that at T_i, and the area under the curve of each of the 16."""

    arm: str
    seed: int
    final: dict[str, float]
    learned: dict[str, float]
    areas: dict[str, float]


def before(place: Place) -> Before:
    """Trains the bank of the 144 tasks, or opens it, and plays its tasks."""
    scale, path = place.scale, place.out / "base"
    names = [task.name for task in task_set("mt160") if task.name not in HELD_OUT][: scale.tasks]
    data = place.data(names)
    bank = ExpertBank.open(path) if is_bank(path) else create_bank(path, scale.model, data)
    for stage, config in scale.stages.items():
        fit_stage(stage, data, bank, config)
    model = bank.model()
    both = {"mixture": Learned(model, [data], "mixture"), "backbone": Learned(backbone_of(model), [data])}
    scores = {
        name: place.scores(learned.agent(names), names, scale.old_episodes, f"base/{name}") for name, learned in both.items()
    }
    return Before(bank, data, scores)


def run_arm(place: Place, start: Before, name: str, seed: int) -> Result:
    """All increments of one arm. An arm that keeps a model per group acts at T as it did at T_i."""
    scale, folder = place.scale, place.out / f"{name.replace(' ', '-')}-{seed}"
    for grown in folder.glob("grown-*"):  # a study that was killed grows them again
        shutil.rmtree(grown)
    known, learned = start.learned(name), dict(start.of(name))
    areas: dict[str, float] = {}
    groups = GROUPS[: scale.increments]
    settings = {**scale.training, "seed": seed}
    for number, group in enumerate(groups):
        now = Increment(number, place.data(group), folder, start.bank.path, scale.steps, settings)
        points = []
        for fraction, latest in ARMS[name](known, now):
            points.append(place.scores(latest.agent(group), group, scale.episodes, f"{folder.name}/{number}-{fraction:g}"))
        learned |= points[-1]
        areas |= {task: float(np.mean([point[task] for point in points])) for task in group}
        if name in ONE_MODEL:
            known = latest
    if name not in ONE_MODEL:
        return Result(name, seed, learned, learned, areas)
    joined, old = [task for group in groups for task in group], list(start.of(name))
    final = place.scores(known.agent(joined), joined, scale.episodes, f"{folder.name}/final")
    final |= place.scores(known.agent(old), old, scale.old_episodes, f"{folder.name}/final-old")
    return Result(name, seed, final, learned, areas)


ONE_MODEL = ("fine-tuned", "without mask")
"""The arms in which later tasks change what acts on earlier ones."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean over seeds and tasks with its 95% interval, from a bootstrap that draws both."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, cells: NDArray[np.float64]) -> Measure:
        """cells: (R seeds, M tasks)."""
        rng, (seeds, tasks) = np.random.default_rng(0), cells.shape
        drawn = rng.integers(seeds, size=(RESAMPLES, seeds, 1)), rng.integers(tasks, size=(RESAMPLES, 1, tasks))
        low, high = np.quantile(cells[drawn].mean(axis=(1, 2)), (0.025, 0.975))
        return cls(float(cells.mean()), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:6.1f} ({self.low:.1f} to {self.high:.1f})"


def measures(results: Sequence[Result], scratch: Sequence[Result], old: Sequence[str]) -> dict[str, Measure]:
    """The measures of one arm, by name. scratch: the results of "from scratch" with the same seeds."""
    new = [task for task in results[0].areas if task not in old]

    def cells(value: Any, tasks: Sequence[str]) -> Measure:
        return Measure.of(np.array([[value(result, task, k) for task in tasks] for k, result in enumerate(results)]))

    def transfer(result: Result, task: str, k: int) -> float:
        reference = scratch[k].areas[task]
        return 100.0 * (result.areas[task] - reference) / max(100.0 - reference, _LEAST_ROOM)

    found = {
        "average performance": cells(lambda result, task, _: result.final[task], new),
        "forgetting": cells(lambda result, task, _: result.learned[task] - result.final[task], new),
        "forward transfer": cells(transfer, new),
    }
    if results[0].arm != "from scratch":
        found["old tasks"] = cells(lambda result, task, _: result.final[task], old)
        found["forgetting of old tasks"] = cells(lambda result, task, _: result.learned[task] - result.final[task], old)
    return found


def main() -> None:
    """Parses the command line, runs the study and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None)
    add_options(parser)
    arguments = parser.parse_args()
    place = Place(arguments.out, arguments.datasets, SCALES[arguments.scale], arguments.workers)
    scale = place.scale
    for names, episodes in ((HELD_OUT, scale.episodes), (task_set("mt160"), scale.old_episodes)):
        require_disjoint(names, scale.demonstrations, 0, EVAL_SEED, episodes)
    record = begin("continual", scale=arguments.scale, seeds=arguments.seeds)
    start = before(place)
    results = {name: [run_arm(place, start, name, seed) for seed in range(arguments.seeds)] for name in ARMS}
    rows: list[dict[str, Any]] = []
    for name, found in results.items():
        for measure, value in measures(found, results["from scratch"], list(start.of(name))).items():
            rows.append({"arm": name, "measure": measure, "value": value.value, "interval": [value.low, value.high]})
            if table_wanted(arguments.json):
                print(f"{name:14s} {measure:24s} {value}")
    finish(record, rows, json_path=arguments.json)


if __name__ == "__main__":
    main()
