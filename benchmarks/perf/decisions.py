"""Measures whole decisions of an agent, `agent.act` on one task: recorded ones against those that Python makes, in turns.

    python -m benchmarks.perf.decisions [BANK] [--task walker-walk] [--threads 1] [--json [FILE]] [--quick]

Each row is one choice of experts of a bank, by default of `builtin:mt160`; the observations are random, one slot decides. A
hook on a module keeps an agent from using what was recorded, and costs next to nothing. `Routing` is never recorded.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from m3dt_agent import M3DTAgent, Routing
from m3dt_agent.agent import Experts
from m3dt_agent.model.determinism import cpu_threads
from m3dt_agent.model.recorded import RECORD_AFTER

from .frame import Run, add_options, alternate, begin, finish, table_wanted

DECISIONS = 100
"""How many a run makes."""


@dataclass(frozen=True, slots=True)
class Row:
    """Decisions a second with one choice of experts; `python` is without recording. ratio: of the two."""

    experts: str
    decisions: float
    python: float
    ratio: float
    rounds: int


def run_of(agent: M3DTAgent, task: str, experts: Experts, *, recorded: bool) -> Run:
    """A run of an agent that has acted before; `recorded` says whether Python stays out of it."""
    own = agent.copy()
    own.experts = experts
    if not recorded:
        own.model.final_norm.register_forward_hook(lambda *_: None)
    spec = next(one for one in own.tasks if one.name == task)
    observations = np.random.default_rng(0).normal(size=(DECISIONS, spec.obs_dim)).astype(np.float32)
    own.reset(task)
    for _ in range(RECORD_AFTER):
        own.act(observations[0], reward=0.0)
    own.reset(task)

    def decide() -> None:
        for observation in observations:
            own.act(observation, reward=0.0)

    decide()
    return decide


def rows(agent: M3DTAgent, task: str, rounds: int) -> list[Row]:
    """Measures every choice of experts."""
    choices: dict[str, Experts] = {"none": "none"}
    if agent.config.n_experts:
        choices |= {"mixture": "mixture", "routed, mass 0.99": Routing(mass=0.99)}
    found = []
    for name, experts in choices.items():
        ways = [run_of(agent, task, experts, recorded=recorded) for recorded in (True, False)]
        timing = alternate(ways, rounds=rounds, limit_seconds=60.0)
        ours, python = (DECISIONS / seconds for seconds in timing.medians)
        found.append(Row(name, ours, python, ours / python, timing.rounds))
    return found


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("bank", nargs="?", default="builtin:mt160")
    parser.add_argument("--task", default="walker-walk")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    record = begin("decisions", bank=args.bank, task=args.task, threads=args.threads, quick=args.quick)
    with cpu_threads(args.threads):
        found = rows(M3DTAgent.load(args.bank), args.task, 3 if args.quick else 31)
    if table_wanted(args.json):
        for row in found:
            print(f"{row.experts:20s} {row.decisions:7.0f} a second, {row.python:7.0f} by Python: {row.ratio:.2f} x")
    finish(record, found, json_path=args.json)


if __name__ == "__main__":
    main()
