"""Which tasks an experiment trains on: the published sets, samples by the paper's rule, and the tasks that are held out.

    mt10 … mt160       published sets, three draws each; loaded, not derived again
    sampled-40         `sample(40, seed, exclude=HELD_OUT)`
    only-walker-run    one task
    mt160[13]          13 tasks of a published set, chosen by `reduced` for a small scale

The rule (M3DT, appendix A.3) asks for a domain ratio of 5:3:4:4, the mean difficulty of the full set, and diversity. We
implement it as a stratified sample. The tasks of a domain are ordered by difficulty (ties at random) and cut into equal runs,
one for each task that the domain gives; one task is drawn from each run. Of `DRAWS` such sets we keep those whose mean
difficulty is near enough, and take the one with the fewest pairs of tasks from one family; among equals, the one with the
nearest mean.

    python -m benchmarks.experiments.task_sets      prints how far the published sets are from the rule
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
"""Published set → number of tasks."""
PUBLISHED_SEEDS = (0, 1, 2)
RATIO: Mapping[Domain, int] = {"metaworld": 5, "dmcontrol": 3, "ant-dir": 4, "cheetah-vel": 4}
"""Ratio of the domains in a set (M3DT, appendix A.3)."""
TOLERANCE = 2.0
"""How many points a sample's mean difficulty may differ from that of all candidates."""
DRAWS = 200
"""How many sets are drawn for one sample."""
_ARCS = 8
"""How many families the 40 directions form, and the 40 velocities: equal parts of their range."""

HELD_OUT_SEED = 24378  # from the paper's number on arXiv
HELD_OUT_PER_DOMAIN = 4
HELD_OUT: tuple[str, ...] = (
    *("button-press", "plate-slide", "sweep-into", "window-open"),
    *("reacher-hard", "pendulum-swingup", "cartpole-balance", "walker-run-backwards"),
    *("ant-dir-8", "ant-dir-12", "ant-dir-15", "ant-dir-22"),
    *("cheetah-vel-8", "cheetah-vel-16", "cheetah-vel-24", "cheetah-vel-36"),
)
"""Sixteen tasks, four per domain, kept for later work on adaptation. `held_out_by_rule()` chose them; this list fixes them.

Nothing is tuned on them. Only experiments on published sets and single tasks may train on them.
"""
_TUNED_ON = (
    *("drawer-open", "window-close", "button-press-topdown", "faucet-open"),
    *("cartpole-balance-sparse", "walker-walk", "ant-dir-10", "cheetah-vel-22"),
)
"""The quickstart's tasks. Its noise and its steps were tuned on them before there were held-out tasks."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a set is from the rule.

    difficulty: its mean minus that of all 160 tasks. domains, wanted: how many tasks of each domain it has and should have.
    """

    name: str
    seed: int
    size: int
    difficulty: float
    domains: Mapping[Domain, int]
    wanted: Mapping[Domain, int]


def published_difficulty() -> dict[str, float]:
    """Task → published score of single-task Prompt-DT. A low score means a difficult task."""
    return {task.name: task.published_score for task in TASKS if task.published_score is not None}


def sample(size: int, seed: int, difficulty: Mapping[str, float] | None = None, exclude: Iterable[str] = ()) -> tuple[str, ...]:
    """Draws `size` tasks by the rule and returns them in the published order. The same arguments give the same tasks.

    Args:
        difficulty: task → score of a single-task agent, for every task that may be drawn. None: `published_difficulty()`.
        exclude: tasks that may not be drawn. The sample aims at the mean difficulty of the others.

    Raises:
        UnknownTaskError: an excluded task does not exist.
        ConfigError: a domain has too few tasks left, a task has no difficulty, or no draw came within `TOLERANCE` points.
    """
    left_out = {task_table.get(name).name for name in exclude}
    candidates = [task for task in TASKS if task.name not in left_out]
    return _draw(domain_counts(size), candidates, seed, difficulty or published_difficulty())


def domain_counts(size: int) -> dict[Domain, int]:
    """How many tasks of each domain a set of `size` has by `RATIO`. Places left over go to the largest remainders.

    Raises:
        ConfigError: the size is below 1.
    """
    if size < 1:
        raise ConfigError(f"a task set must have at least one task; got size {size}")
    exact = {domain: size * share / sum(RATIO.values()) for domain, share in RATIO.items()}
    counts = {domain: math.floor(value) for domain, value in exact.items()}
    by_remainder = sorted(DOMAINS, key=lambda domain: counts[domain] - exact[domain])
    for domain in by_remainder[: size - sum(counts.values())]:
        counts[domain] += 1
    return counts


@functools.cache
def family(task: TaskSpec) -> str:
    """What a task is a variant of: its object (door), its body (walker), or one of eight ranges of directions or velocities."""
    if task.goal_direction is not None:
        return f"ant-dir {int(task.goal_direction % math.tau / math.tau * _ARCS)}"
    if task.goal_velocity is not None:
        fastest = max(other.goal_velocity or 0.0 for other in by_domain("cheetah-vel"))
        return f"cheetah-vel {min(int(task.goal_velocity / fastest * _ARCS), _ARCS - 1)}"
    return f"{task.domain} {task.name.partition('-')[0]}"


def held_out_by_rule() -> tuple[str, ...]:
    """Chooses the tasks of `HELD_OUT`: four per domain, drawn by the rule from all tasks that nothing was tuned on."""
    candidates = [task for task in TASKS if task.name not in _TUNED_ON]
    return _draw(dict.fromkeys(DOMAINS, HELD_OUT_PER_DOMAIN), candidates, HELD_OUT_SEED, published_difficulty())


def named(name: str, seed: int) -> tuple[str, ...]:
    """The tasks of a set by name: `mt40` (published), `sampled-40` (by the rule, without `HELD_OUT`) or `only-<task>`.

    Raises:
        UnknownTaskError: no such set, published draw or task.
    """
    if name in PUBLISHED_SETS:
        return tuple(task.name for task in task_set(name, seed))
    kind, _, rest = name.partition("-")
    if kind == "sampled" and rest.isdecimal():
        return sample(int(rest), seed, exclude=HELD_OUT)
    if kind == "only":
        return (task_table.lookup(task_table.BUILTIN, rest, "task of the benchmark").name,)
    raise UnknownTaskError(f"unknown task set {name!r}; valid: {', '.join(PUBLISHED_SETS)}, sampled-<size>, only-<task>")


def reduced(names: Sequence[str], size: int) -> tuple[str, ...]:
    """`size` of the tasks `names`, in the order of `names`: each domain in turn gives its next task."""
    left = [[name for name in names if task_table.get(name).domain == domain] for domain in DOMAINS]
    turns = [name for turn in range(len(names)) for group in left for name in group[turn : turn + 1]]
    return tuple(sorted(turns[:size], key=list(names).index))


def published_deviations() -> list[Deviation]:
    """How far each published set is from the rule, measured with `published_difficulty()`."""
    return [deviation(name, seed, named(name, seed)) for name in PUBLISHED_SETS for seed in PUBLISHED_SEEDS]


def deviation(name: str, seed: int, tasks: Sequence[str]) -> Deviation:
    """How far `tasks` are from the rule, measured with `published_difficulty()`."""
    specs = [task_table.get(task) for task in tasks]
    mean = np.mean([task.published_score for task in specs]) - np.mean([task.published_score for task in TASKS])
    found = Counter(task.domain for task in specs)
    return Deviation(name, seed, len(specs), float(mean), {d: found[d] for d in DOMAINS}, domain_counts(len(specs)))


def deviations_table(rows: Iterable[Deviation]) -> str:
    """A table for people to read, one line per set."""
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
            raise ConfigError(f"the set needs {counts[domain]} tasks of {domain}, but only {len(group)} may be drawn")
    if missing := [task.name for task in candidates if task.name not in difficulty]:
        raise ConfigError(f"difficulty has no entry for {', '.join(missing[:5])}{', …' * (len(missing) > 5)}")
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
    """`count` tasks: one from each of `count` equal runs of `tasks` ordered by difficulty."""
    shuffled = [tasks[i] for i in rng.permutation(len(tasks))]
    ordered = sorted(shuffled, key=lambda task: difficulty[task.name])
    edges = [round(i * len(ordered) / max(count, 1)) for i in range(count + 1)]
    return [ordered[int(rng.integers(low, high))] for low, high in itertools.pairwise(edges)]


def same_family_pairs(tasks: Iterable[TaskSpec]) -> int:
    """How many pairs of tasks are of the same family."""
    return sum(math.comb(n, 2) for n in Counter(map(family, tasks)).values())


if __name__ == "__main__":
    print(deviations_table(published_deviations()))
