"""Trains better demonstrators for the tasks whose policies are weak, and ships those that proved better.

    python -m benchmarks.studies.demonstrators train OUT [TASK…] [--steps N]    task after task; run again, it continues
    python -m benchmarks.studies.demonstrators compare OUT [--episodes N]       new against shipped, on seeds of their own
    python -m benchmarks.studies.demonstrators ship OUT                         the better ones into the package's assets

A run begins with the demonstrator that there is: its episodes fill the replay buffer, and a trained one is the first actor. One
that does the same in every episode, as in cup-spin, is never left again; there the run begins from nothing.
`train` may be killed at any time; a larger --steps goes on with finished runs. `ship` replaces level `expert` alone, where the
new mean is higher by two standard errors of the difference; every other tensor and figure stays as it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import m3dt_agent
from m3dt_agent.data.behavior import MeasuredReturn, behavior_policy
from m3dt_agent.data.behavior.policies import LAYER_NAMES, BehaviorPolicy
from m3dt_agent.data.behavior.training import BehaviorTrainingConfig, train_behavior
from m3dt_agent.data.shards import rollout
from m3dt_agent.envs.make import make_env
from m3dt_agent.errors import ConfigError
from m3dt_agent.system.disk import write_file
from m3dt_agent.system.documents import read_document
from m3dt_agent.tasks import TaskSpec, get

ASSETS = Path(m3dt_agent.__path__[0], "assets")
LARGEST_ASSET = 6_000_000  # bytes
STARTS: Mapping[str, str | None] = {
    "finger-turn-hard": "planner",
    "finger-turn-easy": "planner",
    "cup-spin": None,
    "finger-spin": "expert+0.2",
    "walker-run": "expert+0.2",
    "cartpole-swingup-sparse": None,
    "cheetah-jump": None,
    "walker-run-backwards": "expert+0.2",
    "cheetah-run-front": "expert+0.2",
    "cheetah-run-back": "expert+0.2",
    "hopper-hop-backwards": "expert+0.2",
    "cheetah-run-backwards": "expert+0.2",
    "hopper-hop": "expert+0.2",
    "fish-swim": "planner",
    "acrobot-swingup": "planner",
}
"""Task → the level that its run begins with, None: nothing; first those from which most is hoped for in little time."""
FIRST_SEED = 900_000
"""Seeds of the comparison; training is measured on small ones, and collections draw theirs from all 32 bits."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both policies of a task over the same episodes."""

    shipped: MeasuredReturn
    new: MeasuredReturn
    episodes: int

    @property
    def is_better(self) -> bool:
        """Whether the new mean is higher by two standard errors of the difference."""
        error = math.hypot(self.shipped.std, self.new.std) / math.sqrt(self.episodes)
        return self.new.mean > self.shipped.mean + 2 * error


def train(out: Path, tasks: Iterable[str], steps: int, algorithm: str) -> None:
    """Trains one task after the other; each in its folder of `out`."""
    for name in tasks:
        config = BehaviorTrainingConfig(steps=steps, algorithm=algorithm, start=STARTS[name])
        train_behavior(
            get(name),
            out / name,
            config,
            on_snapshot=lambda snapshot, name=name: print(  # type: ignore[misc]
                f"{name}: {snapshot.steps:,} steps, {snapshot.measured.mean:.1f}", flush=True
            ),
        )


def compare(out: Path, episodes: int) -> dict[str, Comparison]:
    """Task → shipped and new expert of every task that has a run in `out`; also in `out/compared.json`."""
    found = {}
    for file in sorted(out.glob("*/policies.safetensors")):
        task = get(file.parent.name)
        shipped, new = (_measured(task, behavior_policy(task, weights=weights), episodes) for weights in (None, file))
        found[task.name] = Comparison(shipped, new, episodes)
        print(f"{task.name}: shipped {shipped.mean:.1f}, new {new.mean:.1f} ± {new.std:.1f}", flush=True)
    write_file(out / "compared.json", json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))
    return found


def _measured(task: TaskSpec, policy: BehaviorPolicy, episodes: int) -> MeasuredReturn:
    env = make_env(task)
    try:
        returns = [rollout(env, task, policy, FIRST_SEED + i).episode_return for i in range(episodes)]
    finally:
        env.close()
    scores = [task.normalized_score(one, None) for one in returns]
    return MeasuredReturn(*(round(float(value), 1) for value in (np.mean(returns), np.std(returns), np.mean(scores))))


def ship(out: Path, assets: Path = ASSETS) -> list[str]:
    """Puts the better experts of `out` into the files in `assets`; returns the names of their tasks.

    Raises:
        ConfigError: nothing was compared, or the file would have more than `LARGEST_ASSET` bytes.
    """
    compared = read_document(out / "compared.json", dict[str, Comparison], ConfigError)
    better = [name for name, comparison in compared.items() if comparison.is_better]
    tensors = safetensors.numpy.load_file(assets / "behavior_policies.safetensors")
    returns: dict[str, Any] = json.loads((assets / "behavior_returns.json").read_text())
    for name in better:
        new = safetensors.numpy.load_file(out / name / "policies.safetensors")
        tensors |= {f"{name}/expert/{layer}": new[f"{name}/expert/{layer}"] for layer in LAYER_NAMES}
        returns[name]["expert"] = asdict(compared[name].new)
    content = safetensors.numpy.save(tensors)
    if len(content) > LARGEST_ASSET:
        raise ConfigError(f"the policies would have {len(content):,} bytes; the package takes at most {LARGEST_ASSET:,}")
    write_file(assets / "behavior_policies.safetensors", content)
    write_file(assets / "behavior_returns.json", json.dumps(returns, indent=1))
    return better


def main() -> None:
    """The command line above."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("train", "compare", "ship"))
    parser.add_argument("out", type=Path)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(STARTS)}; default: all")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--algorithm", default="sac-ln")
    parser.add_argument("--episodes", type=int, default=25)
    given = parser.parse_args()
    if unknown := sorted(set(given.tasks) - set(STARTS)):
        parser.error(f"{unknown[0]!r} is none of {', '.join(STARTS)}")
    if given.do == "train":
        train(given.out, given.tasks or STARTS, given.steps, given.algorithm)
    elif given.do == "compare":
        compare(given.out, given.episodes)
    else:
        print("shipped:", ", ".join(ship(given.out)) or "none is better")


if __name__ == "__main__":
    main()
