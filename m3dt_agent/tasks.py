"""The 160 tasks as data: 50 Meta-World, 30 DMControl (11 custom), 40 ant-dir, 40 cheetah-vel.

The table is `assets/tasks160.json`, in the published order (M3DT, arXiv 2505.24378, appendix A). The sets mt10 … mt160 for
seeds 0, 1 and 2 are `assets/task_sets.json`. No simulator is imported.

    >>> from m3dt_agent import tasks
    >>> tasks.get("walker-run").obs_dim
    24
    >>> len(tasks.task_set("mt10", seed=0))
    10
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Literal, TypeVar

from .errors import ConfigError, UnknownTaskError

Domain = Literal["metaworld", "dmcontrol", "ant-dir", "cheetah-vel"]
DOMAINS: tuple[Domain, ...] = ("metaworld", "dmcontrol", "ant-dir", "cheetah-vel")

MAX_OBS_DIM = 39
"""The widest observation of the 160 tasks (Meta-World); states are padded with zeros to this width."""
MAX_ACT_DIM = 8
"""The widest action of the 160 tasks (ant-dir); actions are padded with zeros to this width."""

_CHEETAH_VEL_RETURNS = (-100.0, -30.0)  # linear from 0 to 100 between these returns


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: the widths of its observations and actions, its length, and how its returns are scaled and scored.

    `published_name` and `published_num_trajectories` are the task's name and the number of its episodes in the authors' data.
    `target_return` and `return_scale` are constants of the authors' code. `published_score` is the score of a Prompt-DT trained
    on this task alone (appendix A.3). A `custom` task is one of DMControl that is not in dm_control's suite. `goal_direction`
    (ant-dir only) is in radians, `goal_velocity` (cheetah-vel only) in m/s.
    """

    name: str
    published_name: str
    domain: Domain
    obs_dim: int
    act_dim: int
    max_episode_steps: int
    target_return: float
    return_scale: float
    published_score: float
    published_num_trajectories: int
    custom: bool = False
    goal_direction: float | None = None
    goal_velocity: float | None = None

    @property
    def env_id(self) -> str:
        """The Gymnasium id, `M3DT/<task>-v0`."""
        return f"M3DT/{self.name}-v0"

    def normalized_score(self, episode_return: float, success: bool | None = None) -> float:
        """The score of one episode, from 0 to 100.

        Meta-World: 100 if `success` else 0. DMControl: return / 10. cheetah-vel: linear from [-100, -30] to [0, 100], clipped.
        ant-dir: return / 5, clipped. (M3DT, section 5 and appendix A.)

        Raises:
            ConfigError: a Meta-World episode without `success`.
        """
        if self.domain == "metaworld":
            if success is None:
                raise ConfigError(f"task {self.name!r} is scored by success; got success=None")
            return 100.0 if success else 0.0
        if self.domain == "dmcontrol":
            return episode_return / 10.0
        if self.domain == "cheetah-vel":
            low, high = _CHEETAH_VEL_RETURNS
            return min(max(100.0 * (episode_return - low) / (high - low), 0.0), 100.0)
        return min(max(episode_return / 5.0, 0.0), 100.0)


def _read_asset(name: str) -> object:
    return json.loads(resources.files("m3dt_agent").joinpath("assets", name).read_text())


def _load_table() -> tuple[TaskSpec, ...]:
    rows = _read_asset("tasks160.json")
    assert isinstance(rows, list)
    return tuple(
        TaskSpec(
            name=row["task"],
            published_score=row["published_single_task_score"],
            **{key: value for key, value in row.items() if key not in ("task", "published_single_task_score")},
        )
        for row in rows
    )


TASKS: tuple[TaskSpec, ...] = _load_table()
"""All 160 tasks in the published order."""

_BY_NAME = {task.name: task for task in TASKS}


@functools.cache
def _sets() -> dict[str, dict[str, list[str]]]:
    sets = _read_asset("task_sets.json")
    assert isinstance(sets, dict)
    return sets


T = TypeVar("T")


def lookup(table: dict[str, T], name: str, what: str) -> T:
    """Returns `table[name]`.

    Raises:
        UnknownTaskError: there is none; the message names the closest keys.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        close = difflib.get_close_matches(str(name), table, n=3)
        valid = f"did you mean {', '.join(close)}?" if close else f"valid: {', '.join([*list(table)[:12], '…'][: len(table)])}"
        raise UnknownTaskError(f"unknown {what} {name!r}; {valid}") from None


def get(name: str) -> TaskSpec:
    """The task called `name`.

    Raises:
        UnknownTaskError: there is none; the message names the closest ones.
    """
    return lookup(_BY_NAME, name, "task")


def task_set(name: str, seed: int = 0) -> tuple[TaskSpec, ...]:
    """A published task set: mt10, mt20, mt40, mt80, mt120 or mt160, as drawn for seed 0, 1 or 2.

    Raises:
        UnknownTaskError: no such set or seed.
    """
    by_seed = lookup(_sets(), f"seed{seed}", "task-set seed")
    return tuple(get(task) for task in lookup(by_seed, name, "task set"))


def by_domain(domain: str) -> tuple[TaskSpec, ...]:
    """All tasks of one domain, in the published order.

    Raises:
        UnknownTaskError: the domain is not one of `DOMAINS`.
    """
    lookup({d: d for d in DOMAINS}, domain, "domain")
    return tuple(task for task in TASKS if task.domain == domain)


def resolve(names: Iterable[str | TaskSpec] | TaskSpec, *, seed: int = 0) -> tuple[TaskSpec, ...]:
    """The tasks that `names` mean: task names, set names (drawn for `seed`), domain names or specs, in any mixture.

    One name or spec may stand alone. Every task is returned once, in the order of its first mention.

    Raises:
        UnknownTaskError: a name that is none of these. ConfigError: no collection at all.
    """
    if isinstance(names, str | TaskSpec):
        names = (names,)
    if not isinstance(names, Iterable):
        raise ConfigError(f"tasks must be names of tasks, sets or domains, or specs, in a list; got {names!r}")
    found: dict[str, TaskSpec] = {}
    for name in names:
        if isinstance(name, TaskSpec):
            group: tuple[TaskSpec, ...] = (name,)
        elif not isinstance(name, str):
            group = (get(name),)  # an error that names it
        elif name in DOMAINS:
            group = by_domain(name)
        elif name in _sets()["seed0"]:
            group = task_set(name, seed)
        else:
            group = (get(name),)
        found.update((task.name, task) for task in group)
    return tuple(found.values())
