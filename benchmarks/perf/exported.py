"""Measures the decisions a second of files of `m3dt export`, run by onnxruntime, against the agent in torch, in turns.

    python -m benchmarks.perf.exported [TASK…] [--bank builtin:mt160] [--slots 1 25] [--episodes 25] [--json [FILE]] [--quick]

For each task: the agent, and files with all experts, and with those that carry 0.01 of the router's weight or more, in float32
and in int8. Every way decides on the same observations and has as many threads as torch (`OMP_NUM_THREADS`). A run is a few
decisions of every slot, in the middle of an episode. With `--episodes`, every way also plays so many episodes of each task from
seed 10000, and its mean normalized score is shown.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig
from m3dt_agent.evaluation import AgentPolicy, evaluate
from m3dt_agent.export import ExportedPolicy, export_policy
from m3dt_agent.tasks import TaskSpec, resolve

from .frame import add_options, alternate, begin, finish, table_wanted

WAYS: dict[str, dict[str, Any]] = {
    "float32, all experts": {},
    "int8, all experts": {"int8": True},
    "float32, experts from 0.01": {"least_share": 0.01},
    "int8, experts from 0.01": {"least_share": 0.01, "int8": True},
}
DECISIONS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One way of deciding in `slots` slots of a task.

    ratio: to the agent. megabytes: of the file. experts: in each layer. score: the mean over episodes, if any were played.
    """

    task: str
    slots: int
    way: str
    decisions_per_second: float
    ratio: float
    megabytes: float | None
    experts: str
    rounds: int
    score: float | None


def decide(policy: AgentPolicy | ExportedPolicy, obs: Any) -> None:
    """A few decisions of every slot."""
    for _ in range(DECISIONS):
        N = len(obs)
        policy.act(obs, reward=np.zeros(N), reset_mask=np.zeros(N, bool), active=np.ones(N, bool))


def score_of(policy: AgentPolicy | ExportedPolicy, task: TaskSpec, episodes: int) -> float:
    """The mean normalized score of episodes from the seed of evaluations."""
    rows = evaluate(policy, [task], EvalConfig(episodes=episodes, workers=0), progress=False)
    return float(np.mean([row.normalized_score for row in rows]))


def measure(agent: M3DTAgent, task: TaskSpec, slots: list[int], rounds: int, episodes: int) -> Iterator[Row]:
    """Times all ways for each number of slots."""
    with tempfile.TemporaryDirectory() as folder:
        ways = [way for way, options in WAYS.items() if agent.experts != "none" or "least_share" not in options]
        files = {way: Path(folder, f"{i}.onnx") for i, way in enumerate(ways)}
        made = {way: export_policy(agent, task, file, **WAYS[way]) for way, file in files.items()}
        policies: dict[str, AgentPolicy | ExportedPolicy] = {"torch": AgentPolicy(agent)}
        policies |= {way: ExportedPolicy(file, threads=torch.get_num_threads()) for way, file in files.items()}
        scores = {way: score_of(policy, task, episodes) if episodes else None for way, policy in policies.items()}
        for N in slots:
            obs = np.zeros((N, agent.config.state_dim), np.float32)
            for policy in policies.values():
                policy.reset([task] * N, [()] * N)
                policy.act(obs, reward=None, reset_mask=np.ones(N, bool), active=np.ones(N, bool))
                decide(policy, obs)
            timing = alternate([functools.partial(decide, policy, obs) for policy in policies.values()], rounds=rounds)
            for way, taken in zip(policies, timing.medians, strict=True):
                size = files[way].stat().st_size / 1e6 if way in files else None
                experts = ", ".join(str(len(layer)) for layer in made[way].kept_experts) if way in made else "all"
                speed, ratio = N * DECISIONS / taken, timing.medians[0] / taken
                yield Row(task.name, N, way, speed, ratio, size, experts, timing.rounds, scores[way])


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("tasks", nargs="*", default=["walker-run", "ant-dir-3"])
    parser.add_argument("--bank", default="builtin:mt160")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 25])
    parser.add_argument("--episodes", type=int, default=0)
    args = parser.parse_args()
    record = begin("exported", bank=args.bank, quick=args.quick)
    agent, found = M3DTAgent.load(args.bank), []
    if args.quick:
        args.tasks, args.slots = args.tasks[:1], args.slots[:1]
    for task in resolve(args.tasks, first=agent.tasks):
        for row in measure(agent, task, args.slots, 3 if args.quick else 31, args.episodes):
            found.append(row)
            if table_wanted(args.json):
                score = "" if row.score is None else f"score {row.score:5.1f}  "
                size = "" if row.megabytes is None else f"{row.megabytes:5.1f} MB, {row.experts} experts"
                print(
                    f"{row.task:14s} {row.slots:3d} slots  {row.way:28s} {row.decisions_per_second:8.0f} decisions/s  "
                    f"{row.ratio:5.2f} x torch   {score}{size}   ({row.rounds} rounds)",
                    flush=True,
                )
    finish(record, found, json_path=args.json)


if __name__ == "__main__":
    main()
