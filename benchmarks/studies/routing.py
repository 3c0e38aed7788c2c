"""Measures what routing saves on a trained router, and what it costs in score.

    python -m benchmarks.studies.routing OUT --datasets ROOT [--json FILE] [--workers N]

There are 24 tasks, six of each domain, and 16 experts, with the sizes and steps of the benchmark's scale "laptop". One backbone
with one set of experts gets four third stages:

    dense         as published
    skip          a step skips experts whose weight is below SKIP_BELOW at every token of a window
    concentrated  in the second half, the entropy of a window's mean weights is added to the loss
    both          skip and concentrated together

All four act with the dense mixture. All but skip also act routed, and the backbone acts alone. All actors play the same 25
episodes of every task. `a` is not inferior to `b` if the one-sided 95% bound of the mean paired difference in normalized score
lies above -MARGIN. Results are kept under OUT, and a killed study continues when called again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3dt_agent import tasks as task_table
from m3dt_agent.agent import Experts, M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig, ModelConfig, Stage, train_preset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.evaluation import AgentPolicy, EpisodeResult, best_prompt_sampler, evaluate, read_rows, write_rows
from m3dt_agent.model import Routing
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.training.logs import log_file, read_log

from ..perf.frame import add_options, begin, finish, table_wanted
from ..report.significance import student_quantile
from ..runs.data import prepare, require_disjoint

TASKS = (
    *("coffee-button", "dial-turn", "door-lock", "handle-press", "plate-slide-side", "peg-unplug-side"),
    *("walker-walk", "reacher-easy", "finger-turn-hard", "hopper-stand", "cheetah-run-back", "cup-spin"),
    *("ant-dir-0", "ant-dir-3", "ant-dir-11", "ant-dir-16", "ant-dir-30", "ant-dir-36"),
    *("cheetah-vel-0", "cheetah-vel-5", "cheetah-vel-13", "cheetah-vel-22", "cheetah-vel-30", "cheetah-vel-35"),
)
MODEL = ModelConfig(64, 3, 4, n_experts=16, context_length=8, prompt_length=5)
STEPS: Mapping[Stage, int] = {"backbone": 2000, "experts": 1000, "router": 2000}
RATES: Mapping[Stage, float] = {"backbone": 1e-3, "experts": 1e-3, "router": 3e-4}
DEMONSTRATIONS, EPISODES, EVAL_SEED = 40, 25, 10_000
SKIP_BELOW, CONCENTRATE, MASS = 0.05, 0.003, 0.99
MARGIN = 3.0
ROUTERS: Mapping[str, Mapping[str, float]] = {
    "dense": {},
    "skip": {"skip_below": SKIP_BELOW},
    "concentrated": {"concentrate": CONCENTRATE},
    "both": {"skip_below": SKIP_BELOW, "concentrate": CONCENTRATE},
}
ROUTED = Routing(mass=MASS)
ACTORS: Sequence[tuple[str, Experts, str]] = (
    *((router, "mixture", f"{router}, all experts") for router in ROUTERS),
    *((router, ROUTED, f"{router}, {MASS} of the mass") for router in ("dense", "concentrated", "both")),
    ("dense", Routing(max_experts=4), "dense, 4 experts"),
    ("dense", "none", "backbone alone"),
)
PAIRS = (
    ("dense, 0.99 of the mass", "dense, all experts"),
    ("dense, 4 experts", "dense, all experts"),
    ("skip, all experts", "dense, all experts"),
    ("concentrated, all experts", "dense, all experts"),
    ("concentrated, 0.99 of the mass", "dense, all experts"),
    ("both, all experts", "dense, all experts"),
    ("both, 0.99 of the mass", "dense, all experts"),
    ("both, 0.99 of the mass", "both, all experts"),
    ("dense, all experts", "backbone alone"),
    ("dense, 0.99 of the mass", "backbone alone"),
    ("concentrated, 0.99 of the mass", "backbone alone"),
    ("both, 0.99 of the mass", "backbone alone"),
)


@dataclass(frozen=True)
class Difference:
    """Mean paired difference in normalized score over `episodes` episodes, and its one-sided 95% bounds."""

    a: str
    b: str
    episodes: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What may be said of `a` against `b`."""
        if self.low > 0:
            return "better"
        return "not inferior" if self.low > -MARGIN else "not shown to be as good"


def train_router(name: str, data: TaskDatasets, out: Path) -> M3DTAgent:
    """An agent with one of the third stages. Training continues from what is there."""
    base, bank = out / "stages-1-2", out / name
    agent = M3DTAgent(MODEL, data.tasks)
    for stage in ("backbone", "experts"):
        agent.fit_stage(stage, data, bank=base, config=stage_config(stage))
    if not (bank / "bank.json").exists():
        ExpertBank.open(base).copy_to(bank)
    agent = M3DTAgent.load(bank)
    agent.fit_stage("router", data, bank=bank, config=stage_config("router", **ROUTERS[name]))
    return agent


def stage_config(stage: Stage, **changes: Any) -> Any:
    """The training config of a stage; `changes` replaces fields."""
    shared = {"batch_size": 32, "warmup_steps": 50, "threads": 1, "checkpoint_every": 200, "log_every": 50}
    return train_preset("small", stage, steps=STEPS[stage], learning_rate=RATES[stage], **shared, **changes)


def episodes_of(agent: M3DTAgent, label: str, out: Path, workers: int | None) -> list[EpisodeResult]:
    """All episodes of one actor. If they were played before, they are read from `out`."""
    file = out / "rows" / f"{label.replace(' ', '-').replace(',', '')}.jsonl"
    if not file.exists():
        config = EvalConfig(EPISODES, EVAL_SEED, slots=32, workers=workers, stop_on_success=True)
        with cpu_threads(1):
            write_rows(file, evaluate(AgentPolicy(agent, name=label), TASKS, config))
    return read_rows(file)


@torch.inference_mode()
def experts_needed(agent: M3DTAgent, data: TaskDatasets) -> dict[str, float]:
    """Task → how many experts per block carry MASS of the router's weight, a mean over blocks and windows of its data."""
    found = {}
    for task, batch in zip(data.tasks, batches(agent, data), strict=True):
        agent.model(batch.window, batch.prompt, ROUTED)
        found[task.name] = float(agent.model.routing_usage().kept.float().mean())
    return found


@torch.inference_mode()
def largest_action_difference(agent: M3DTAgent, data: TaskDatasets, routing: Routing) -> float:
    """The largest difference between actions of the dense and the routed mixture, over all windows and real dimensions."""
    largest = 0.0
    for batch in batches(agent, data):
        dense, routed = (agent.model(batch.window, batch.prompt, choice) for choice in ("mixture", routing))
        largest = max(largest, float((dense - routed).abs()[batch.action_mask].max()))
    return largest


def batches(agent: M3DTAgent, data: TaskDatasets) -> list[Any]:
    """128 windows of every task, with the prompts that the agent itself uses."""
    sampler = best_prompt_sampler(agent, data, "router", 128, 0)
    return [sampler.sample_task(i, 0) for i in range(len(data.tasks))]


def compare(rows: Mapping[str, Sequence[EpisodeResult]], a: str, b: str) -> Difference:
    """The paired difference between the episodes of two actors."""
    first, second = ({(row.task, row.seed): score(row) for row in rows[name]} for name in (a, b))
    differences = np.array([first[key] - second[key] for key in first])
    n = len(differences)
    half = student_quantile(0.95, n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
    mean = float(differences.mean())
    return Difference(a, b, n, mean, mean - half, mean + half)


def score(row: EpisodeResult) -> float:
    """An episode's normalized score."""
    return task_table.get(row.task).normalized_score(row.episode_return, row.success)


def products_saved(bank: Path) -> float:
    """The share of experts that a third stage used, a mean over its steps."""
    return float(np.mean([float(row["experts_kept"] or 1.0) for row in read_log(log_file(bank, "router"))]))


def study(out: Path, datasets: Path, workers: int | None) -> dict[str, Any]:
    """Runs the whole study, continuing from what is there."""
    require_disjoint(TASKS, DEMONSTRATIONS, 0, EVAL_SEED, EPISODES)
    data = prepare(datasets, TASKS, "mixture", DEMONSTRATIONS, 0, workers)
    agents = {name: train_router(name, data, out) for name in ROUTERS}
    rows = {}
    for router, experts, label in ACTORS:
        agents[router].experts = experts
        rows[label] = episodes_of(agents[router], label, out, workers)
    differences = [compare(rows, a, b) for a, b in PAIRS]
    return {
        "scores": {label: float(np.mean([score(row) for row in found])) for label, found in rows.items()},
        "differences": [dataclasses.asdict(d) | {"verdict": d.verdict} for d in differences],
        "experts_needed": {name: experts_needed(agent, data) for name, agent in agents.items()},
        "experts_used_in_training": {name: products_saved(out / name) for name in ROUTERS},
        "largest_action_difference": {
            name: largest_action_difference(agents[name], data, ROUTED) for name in ("dense", "concentrated", "both")
        },
    }


def show(found: Mapping[str, Any]) -> None:
    """Prints the study's results."""
    print("mean normalized score")
    for label, value in found["scores"].items():
        print(f"  {label:34s} {value:6.2f}")
    print(f"paired differences, one-sided 95% bounds (margin {MARGIN})")
    for d in found["differences"]:
        print(f"  {d['a']:34s} - {d['b']:24s} {d['mean']:+6.2f} [{d['low']:+.2f}, {d['high']:+.2f}]  {d['verdict']}")
    print(f"experts per block that carry {MASS} of the mass, of {MODEL.n_experts}: mean over tasks (fewest … most)")
    for name, per_task in found["experts_needed"].items():
        values = list(per_task.values())
        print(f"  {name:34s} {np.mean(values):5.2f} ({min(values):.2f} … {max(values):.2f})")
    print("share of expert products done in stage 3")
    for name, share in found["experts_used_in_training"].items():
        print(f"  {name:34s} {share:5.3f}")
    print("largest difference of any action, dense against routed")
    for name, value in found["largest_action_difference"].items():
        print(f"  {name:34s} {value:.4f}")


def main() -> None:
    """Parses the command line, runs the study and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=None)
    add_options(parser)
    arguments = parser.parse_args()
    record = begin("routing_study", tasks=TASKS, model=MODEL.to_dict(), skip_below=SKIP_BELOW, concentrate=CONCENTRATE)
    found = study(arguments.out, arguments.datasets, arguments.workers)
    if table_wanted(arguments.json):
        show(found)
    finish(record, [found], json_path=arguments.json)
    (arguments.out / "study.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
