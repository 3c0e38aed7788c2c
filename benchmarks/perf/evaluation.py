"""Measures `evaluate` on ten tasks of all four domains, compared with playing one environment at a time in one process.

    python -m benchmarks.perf.evaluation [--json [FILE]] [--quick] [--preset small] [--episodes 10] [--plain-episodes 1]
                                         [--slots 32] [--deterministic]

The plain loop makes each task's environment in this process and plays its episodes one after another, with all of torch's
threads: `agent.reset(task)`, then `agent.act(obs, reward=...)` and `env.step` in turn. Ours is `evaluate`. Both play the same
full episodes (none stops at success), once with the expert behavior policies, which cost almost nothing compared with the
simulators, and once with an agent of random weights whose routed mixture acts.

The plain loop plays `--plain-episodes` per task, once before and once after ours. Its time is scaled up to `--episodes`, except
the time to make the environments, which it makes once per task. `--plain-episodes 10` scales nothing.

    core use      CPU seconds of this process and the workers / wall-clock seconds
    acting s      seconds in the policy
    sim s         seconds of the plain loop in the simulators, on one core
    bound         (our acting s + sim s / cores) / our s: the share of our time that would remain if nothing had to wait, to be
                  made or to be started
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import m3dt_agent.envs
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.prompts import Prompt
from m3dt_agent.data.stats import TaskStatistics
from m3dt_agent.evaluation import AgentPolicy, BehaviorPolicies, VectorPolicy, evaluate
from m3dt_agent.model import M3DT
from m3dt_agent.scores import EpisodeResult
from m3dt_agent.system.machine import usable_cores
from m3dt_agent.tasks import TaskSpec, get

from .frame import add_options, begin, finish, table_wanted

TASKS = (
    *("reach", "pick-place", "door-open", "push"),
    *("walker-run", "cup-spin", "cheetah-jump", "reacher-hard"),
    *("ant-dir-3", "cheetah-vel-25"),
)
QUICK_TASKS = ("cheetah-vel-25", "ant-dir-3")
SEED = EvalConfig().seed


@dataclass(frozen=True, slots=True)
class Row:
    """One policy, all episodes: the plain loop's times and ours."""

    policy: str
    episodes: int
    agent_steps: int
    plain_seconds: float
    ours_seconds: float
    ratio: float
    plain_episodes_per_second: float
    ours_episodes_per_second: float
    plain_steps_per_second: float
    ours_steps_per_second: float
    plain_core_use: float
    ours_core_use: float
    plain_acting_seconds: float
    ours_acting_seconds: float
    simulating_seconds: float  # of the plain loop, on one core; resets included
    bound: float


@dataclass(slots=True)
class Clock:
    """Times of a run in seconds. acting, making: the parts of `wall` in the policy and in making environments."""

    wall: float = 0.0
    cpu: float = 0.0
    acting: float = 0.0
    making: float = 0.0
    results: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)  # (task, seed) → (return, length)


class Timed:
    """A policy that counts its seconds in `act`."""

    def __init__(self, policy: VectorPolicy) -> None:
        self._policy, self.name, self.bank_hash = policy, policy.name, policy.bank_hash
        self.seconds = 0.0

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._policy.reset(tasks, seeds)

    def act(self, *args: Any, **told: Any) -> Any:
        start = time.perf_counter()
        actions = self._policy.act(*args, **told)
        self.seconds += time.perf_counter() - start
        return actions


Actor = Callable[[Any, float | None], Any]
"""(observation, reward of the previous step) → action."""
Begin = Callable[[TaskSpec, int], Actor]
"""(task, seed of the episode) → the actor that plays it."""


def one_at_a_time(begin_episode: Begin, tasks: Sequence[TaskSpec], episodes: int) -> Clock:
    """Plays all episodes with the plain loop."""
    clock = Clock()
    start, cpu = time.perf_counter(), cpu_seconds()
    for task in tasks:
        made = time.perf_counter()
        env = gym.make(task.env_id, disable_env_checker=True)
        clock.making += time.perf_counter() - made
        for seed in range(SEED, SEED + episodes):
            clock.results[task.name, seed] = _play(env, begin_episode(task, seed), seed, clock)
        env.close()
    clock.wall, clock.cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return clock


def _play(env: gym.Env[Any, Any], act: Actor, seed: int, clock: Clock) -> tuple[float, int]:
    obs, _ = env.reset(seed=seed)
    reward: float | None = None
    total, length, done = 0.0, 0, False
    while not done:
        start = time.perf_counter()
        action = act(obs, reward)
        clock.acting += time.perf_counter() - start
        obs, given, terminated, truncated, _ = env.step(action)
        reward = float(given)
        total, length, done = total + reward, length + 1, terminated or truncated
    return total, length


def together(policy: VectorPolicy, tasks: Sequence[TaskSpec], config: EvalConfig) -> Clock:
    """Plays all episodes with `evaluate`."""
    timed = Timed(policy)
    start, cpu = time.perf_counter(), cpu_seconds()
    rows: list[EpisodeResult] = evaluate(timed, tasks, config, progress=False)
    wall = time.perf_counter() - start
    return Clock(
        wall,
        cpu_seconds() - cpu,
        timed.seconds,
        results={(row.task, row.seed): (row.episode_return, row.length) for row in rows},
    )


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def random_agent(tasks: Sequence[TaskSpec], preset: str) -> M3DTAgent:
    """An agent with random weights, prompts and statistics whose routed mixture acts."""
    config, rng = ModelConfig.preset(preset), np.random.default_rng(0)
    torch.manual_seed(0)
    model = M3DT(config)
    with torch.no_grad():
        for parameter in model.expert_tensors().values():  # untrained experts add nothing
            parameter.normal_(std=0.02)
    P, prompts, stats = config.prompt_length, {}, {}
    for task in tasks:
        states = rng.normal(size=(P, task.obs_dim)).astype(np.float32)
        actions = rng.uniform(-1, 1, (P, task.act_dim)).astype(np.float32)
        prompts[task.name] = (Prompt(states, actions, np.ones(P, np.float32), np.arange(P)),)
        mean, std = np.zeros(task.obs_dim, np.float32), np.ones(task.obs_dim, np.float32)
        stats[task.name] = TaskStatistics(mean, std, return_scale=100.0, target_return=100.0, state_clip=10.0)
    return M3DTAgent.from_model(model, tasks, stats, prompts, experts="mixture")


def agents_episodes(agent: M3DTAgent) -> Begin:
    """Episodes of an agent, which is reset to the task before each."""

    def begin_episode(task: TaskSpec, seed: int) -> Actor:
        agent.reset(task=task)
        return lambda obs, reward: agent.act(obs, reward=reward)

    return begin_episode


def behavior_episodes(level: str) -> Begin:
    """Episodes of a behavior policy, which ignores rewards."""

    def begin_episode(task: TaskSpec, seed: int) -> Actor:
        policy = behavior_policy(task, level)
        policy.reset(seed)
        return lambda obs, reward: policy(obs)

    return begin_episode


def compare(
    policy: VectorPolicy, begin_episode: Begin, tasks: Sequence[TaskSpec], config: EvalConfig, plain_episodes: int
) -> Row:
    """Times the plain loop, ours, and the plain loop again. Exits if the two did not play the same episodes."""
    before = one_at_a_time(begin_episode, tasks, plain_episodes)
    ours = together(policy, tasks, config)
    after = one_at_a_time(begin_episode, tasks, plain_episodes)
    for key, (_, length) in before.results.items():
        if length != ours.results[key][1]:
            raise SystemExit(
                f"{key} has {length} steps in the plain loop, but {ours.results[key][1]} in evaluate; they must be equal"
            )
    times = config.episodes / plain_episodes

    def whole(seconds: Callable[[Clock], float]) -> float:
        return statistics.mean(seconds(clock) * times for clock in (before, after))

    making = statistics.mean((before.making, after.making))
    plain = making + whole(lambda c: c.wall - c.making)
    acting = whole(lambda c: c.acting)
    n, steps = len(ours.results), sum(length for _, length in ours.results.values())
    cores = usable_cores()
    simulating = plain - making - acting
    return Row(
        policy=policy.name,
        episodes=n,
        agent_steps=steps,
        plain_seconds=plain,
        ours_seconds=ours.wall,
        ratio=plain / ours.wall,
        plain_episodes_per_second=n / plain,
        ours_episodes_per_second=n / ours.wall,
        plain_steps_per_second=steps / plain,
        ours_steps_per_second=steps / ours.wall,
        plain_core_use=statistics.mean(clock.cpu / clock.wall for clock in (before, after)),
        ours_core_use=ours.cpu / ours.wall,
        plain_acting_seconds=acting,
        ours_acting_seconds=ours.acting,
        simulating_seconds=simulating,
        bound=(ours.acting + simulating / cores) / ours.wall,
    )


HEADER = (
    f"{'policy':14}{'episodes':>9}{'steps':>8}{'plain s':>9}{'ours s':>8}{'ratio':>7}{'plain steps/s':>15}{'ours steps/s':>14}"
    f"{'ours ep/s':>11}{'core use':>14}{'acting s':>16}{'sim s':>8}{'bound':>7}"
)


def table_line(row: Row) -> str:
    """One row of the table under HEADER."""
    return (
        f"{row.policy:14}{row.episodes:9}{row.agent_steps:8}{row.plain_seconds:9.1f}{row.ours_seconds:8.1f}{row.ratio:7.2f}"
        f"{row.plain_steps_per_second:15.0f}{row.ours_steps_per_second:14.0f}{row.ours_episodes_per_second:11.2f}"
        f"{f'{row.plain_core_use:.2f} -> {row.ours_core_use:.2f}':>14}"
        f"{f'{row.plain_acting_seconds:.1f} -> {row.ours_acting_seconds:.1f}':>16}{row.simulating_seconds:8.1f}{row.bound:7.2f}"
    )


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--preset", default="small", choices=["tiny", "small", "paper"])
    parser.add_argument("--episodes", type=int, default=10, help="episodes per task of ours")
    parser.add_argument("--plain-episodes", type=int, default=1, help="episodes per task of the plain loop")
    parser.add_argument("--slots", type=int, default=EvalConfig().slots)
    parser.add_argument("--deterministic", action="store_true")
    args = parser.parse_args()
    m3dt_agent.envs.register()
    tasks = [get(name) for name in (QUICK_TASKS if args.quick else TASKS)]
    preset, episodes = ("tiny", 2) if args.quick else (args.preset, args.episodes)
    config = EvalConfig(episodes=episodes, slots=args.slots, deterministic=args.deterministic)
    record = begin("evaluation", preset=preset, slots=args.slots, deterministic=args.deterministic, quick=args.quick)
    agent, rows = random_agent(tasks, preset), []
    policies: list[tuple[VectorPolicy, Begin, bool]] = [  # the last value: overlap, as `evaluate` chooses it by default
        (BehaviorPolicies("expert"), behavior_episodes("expert"), True),
        (AgentPolicy(agent), agents_episodes(agent), False),
    ]
    if table_wanted(args.json):
        print(HEADER, flush=True)
    for policy, begin_episode, overlap in policies:
        settings = dataclasses.replace(config, overlap=overlap)
        rows.append(compare(policy, begin_episode, tasks, settings, min(args.plain_episodes, episodes)))
        if table_wanted(args.json):
            print(table_line(rows[-1]), flush=True)
    finish(record, rows, json_path=args.json)


if __name__ == "__main__":
    main()
