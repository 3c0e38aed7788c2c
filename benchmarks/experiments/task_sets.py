"""Which tasks an experiment trains on: the published sets as they are, samples by the paper's rule, and what is held out.

    mt10 … mt160             published, three draws each, loaded and not re-derived
    sampled-40               `sample(40, seed, exclude=HELD_OUT)`
    only-walker-run          one task
    mt160[13], sampled-40    `reduced`: what a small scale makes of a set

The rule (M3DT, appendix A.3) asks for the domain ratio 5:3:4:4, for the mean difficulty of the full set, and for diversity.
Here it is a stratified sample: a domain's tasks, ordered by difficulty (ties at random), are cut into as many runs of equal
length as it gives tasks, one task is drawn from each, and of `DRAWS` such sets those whose mean is near enough are kept; the
one with the fewest pairs of one family is taken, of several the nearest.

    python -m benchmarks.experiments.task_sets      prints how far the published sets are from that rule themselves
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m3dt_agent import tasks as task_table
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.tasks import DOMAINS, TASKS, Domain, TaskSpec, by_domain, task_set

PUBLISHED_SETS: Mapping[str, int] = {"mt10": 10, "mt20": 20, "mt40": 40, "mt80": 80, "mt120": 120, "mt160": 160}
"""Their sizes."""
PUBLISHED_SEEDS = (0, 1, 2)
RATIO: Mapping[Domain, int] = {"metaworld": 5, "dmcontrol": 3, "ant-dir": 4, "cheetah-vel": 4}
"""Of the domains in a set (appendix A.3)."""
TOLERANCE = 2.0
"""Points that a sample's mean difficulty may be off."""
DRAWS = 200
"""Sets drawn for one sample."""
_ARCS = 8
"""Families of the 40 directions and of the 40 velocities: equal parts of their range."""

HELD_OUT_SEED = 24378  # the paper's number on arXiv
HELD_OUT_PER_DOMAIN = 4
HELD_OUT: tuple[str, ...] = (
    *("button-press", "plate-slide", "sweep-into", "window-open"),
    *("reacher-hard", "pendulum-swingup", "cartpole-balance", "walker-run-backwards"),
    *("ant-dir-8", "ant-dir-12", "ant-dir-15", "ant-dir-22"),
    *("cheetah-vel-8", "cheetah-vel-16", "cheetah-vel-24", "cheetah-vel-36"),
)
"""Sixteen tasks kept for later work on adaptation, four per domain: `held_out_by_rule()`, named here once and for all.

Nothing is ever tuned on them, and an experiment that is not one of the published sets leaves them out.
"""
_TUNED_ON = (
    *("drawer-open", "window-close", "button-press-topdown", "faucet-open"),
    *("cartpole-balance-sparse", "walker-walk", "ant-dir-10", "cheetah-vel-22"),
)
"""The quickstart's tasks: its noise and its steps were tuned on them before there was a held-out split."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a set is from the rule. difficulty: its mean minus the full set's. domains: its tasks of each, of `wanted`."""

    name: str
    seed: int
    size: int
    difficulty: float
    domains: Mapping[Domain, int]
    wanted: Mapping[Domain, int]


def published_difficulty() -> dict[str, float]:
    """Task → published score of single-task Prompt-DT; a low score is a difficult task."""
    return {task.name: task.published_score for task in TASKS}


def sample(size: int, seed: int, difficulty: Mapping[str, float] | None = None, exclude: Iterable[str] = ()) -> tuple[str, ...]:
    """`size` tasks by the rule, in the published order; the same ones for the same arguments.

    Args:
        difficulty: task → score of a single-task agent, of every task that may be drawn; None is `published_difficulty()`.
        exclude: tasks that may not be drawn. The mean aimed at is that of the others.

    Raises:
        UnknownTaskError: an excluded task that does not exist. ConfigError: a domain has too few tasks left, a task has no
            difficulty, or no draw came within `TOLERANCE` points.
    """
    left_out = {task_table.get(name).name for name in exclude}
    candidates = [task for task in TASKS if task.name not in left_out]
    return _draw(domain_counts(size), candidates, seed, difficulty or published_difficulty())


def domain_counts(size: int) -> dict[Domain, int]:
    """Tasks of each domain in a set of `size`, by `RATIO`; what is left over goes to the largest remainders.

    Raises:
        ConfigError: a size below 1.
    """
    if size < 1:
        raise ConfigError(f"a task set has at least one task; got size {size}")
    exact = {domain: size * share / sum(RATIO.values()) for domain, share in RATIO.items()}
    counts = {domain: math.floor(value) for domain, value in exact.items()}
    by_remainder = sorted(DOMAINS, key=lambda domain: counts[domain] - exact[domain])
    for domain in by_remainder[: size - sum(counts.values())]:
        counts[domain] += 1
    return counts


@functools.cache
def family(task: TaskSpec) -> str:
    """What a task is a variant of: its object (door, plate), its body (walker), an eighth of the directions or velocities."""
    if task.goal_direction is not None:
        return f"ant-dir {int(task.goal_direction % math.tau / math.tau * _ARCS)}"
    if task.goal_velocity is not None:
        fastest = max(other.goal_velocity or 0.0 for other in by_domain("cheetah-vel"))
        return f"cheetah-vel {min(int(task.goal_velocity / fastest * _ARCS), _ARCS - 1)}"
    return f"{task.domain} {task.name.partition('-')[0]}"


def held_out_by_rule() -> tuple[str, ...]:
    """How `HELD_OUT` was chosen: a draw of four tasks per domain, none of which was tuned on before."""
    candidates = [task for task in TASKS if task.name not in _TUNED_ON]
    return _draw(dict.fromkeys(DOMAINS, HELD_OUT_PER_DOMAIN), candidates, HELD_OUT_SEED, published_difficulty())


def named(name: str, seed: int) -> tuple[str, ...]:
    """The tasks of a set by name: `mt40` as published, `sampled-40` by the rule without `HELD_OUT`, `only-<task>`.

    Raises:
        UnknownTaskError: no such set, published draw or task.
    """
    if name in PUBLISHED_SETS:
        return tuple(task.name for task in task_set(name, seed))
    kind, _, rest = name.partition("-")
    if kind == "sampled" and rest.isdecimal():
        return sample(int(rest), seed, exclude=HELD_OUT)
    if kind == "only":
        return (task_table.get(rest).name,)
    raise UnknownTaskError(f"unknown task set {name!r}; valid: {', '.join(PUBLISHED_SETS)}, sampled-<size>, only-<task>")


def reduced(names: Sequence[str], size: int) -> tuple[str, ...]:
    """The first tasks of each domain in turn, `size` of them, in the order of `names`."""
    left = [[name for name in names if task_table.get(name).domain == domain] for domain in DOMAINS]
    turns = [name for turn in range(len(names)) for group in left for name in group[turn : turn + 1]]
    return tuple(sorted(turns[:size], key=list(names).index))


def published_deviations() -> list[Deviation]:
    """How far each published set is from the rule, by published difficulty."""
    return [deviation(name, seed, named(name, seed)) for name in PUBLISHED_SETS for seed in PUBLISHED_SEEDS]


def deviation(name: str, seed: int, tasks: Sequence[str]) -> Deviation:
    """How far `tasks` are from the rule, by published difficulty."""
    specs = [task_table.get(task) for task in tasks]
    mean = np.mean([task.published_score for task in specs]) - np.mean([task.published_score for task in TASKS])
    found = Counter(task.domain for task in specs)
    return Deviation(name, seed, len(specs), float(mean), {d: found[d] for d in DOMAINS}, domain_counts(len(specs)))


def deviations_table(rows: Iterable[Deviation]) -> str:
    """One line per set, for people."""
    head = f"{'set':<10} {'seed':>4} {'tasks':>5} {'difficulty':>10}   MW/DMC/ant/cheetah  by the rule"
    lines = [
        f"{row.name:<10} {row.seed:>4} {row.size:>5} {row.difficulty:>+10.2f}   "
        f"{'/'.join(map(str, row.domains.values())):<19} {'/'.join(map(str, row.wanted.values()))}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _draw(
    counts: Mapping[Domain, int], candidates: Sequence[TaskSpec], seed: int, difficulty: Mapping[str, float]
) -> tuple[str, ...]:
    groups = {domain: [task for task in candidates if task.domain == domain] for domain in DOMAINS}
    for domain, group in groups.items():
        if len(group) < counts[domain]:
            raise ConfigError(f"{counts[domain]} tasks of {domain} are wanted; {len(group)} may be drawn")
    if missing := [task.name for task in candidates if task.name not in difficulty]:
        raise ConfigError(f"no difficulty is given of {', '.join(missing[:5])}{', …' * (len(missing) > 5)}")
    target = float(np.mean([difficulty[task.name] for task in candidates]))
    rng = np.random.default_rng(seed)
    drawn = [[t for d in DOMAINS for t in _stratified(groups[d], counts[d], difficulty, rng)] for _ in range(DRAWS)]
    distances = [abs(float(np.mean([difficulty[task.name] for task in tasks])) - target) for tasks in drawn]
    near = [(same_family_pairs(drawn[i]), distance, i) for i, distance in enumerate(distances) if distance <= TOLERANCE]
    if not near:
        raise ConfigError(
            f"no draw of {sum(counts.values())} tasks came within {TOLERANCE} points of the mean difficulty {target:.1f}; "
            f"the nearest is {min(distances):.1f} off. Take another seed or a larger set"
        )
    chosen = {task.name for task in drawn[min(near)[2]]}
    return tuple(task.name for task in TASKS if task.name in chosen)


def _stratified(
    tasks: Sequence[TaskSpec], count: int, difficulty: Mapping[str, float], rng: np.random.Generator
) -> list[TaskSpec]:
    """`count` tasks, one of each run of equal length when ordered by difficulty."""
    shuffled = [tasks[i] for i in rng.permutation(len(tasks))]
    ordered = sorted(shuffled, key=lambda task: difficulty[task.name])
    edges = [round(i * len(ordered) / max(count, 1)) for i in range(count + 1)]
    return [ordered[int(rng.integers(low, high))] for low, high in itertools.pairwise(edges)]


def same_family_pairs(tasks: Iterable[TaskSpec]) -> int:
    """Pairs of tasks that are variants of the same thing."""
    return sum(math.comb(n, 2) for n in Counter(map(family, tasks)).values())


if __name__ == "__main__":
    print(deviations_table(published_deviations()))
