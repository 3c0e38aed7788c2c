"""The tasks that this process knows: the 160, and one's own, which come from four places.

    register(spec)               Python
    register_file(path)          a TOML file, as `m3dt --tasks FILE` names it
    M3DT_TASKS                   TOML files, separated as in PATH; child processes inherit it
    entry points `m3dt.tasks`    installed packages: a callable that returns specs

The last two are read when a name is looked up that is not among the 160, once in a process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .files import read_tasks
from .names import lookup
from .spec import TaskSpec
from .table import BUILTIN, DOMAINS, MAX_ACT_DIM, MAX_OBS_DIM, TASKS, task_set, task_sets

TASKS_VARIABLE = "M3DT_TASKS"
ENTRY_POINTS = "m3dt.tasks"
_own: dict[str, TaskSpec] = {}
_loading = threading.RLock()
_loaded = False


def register(spec: TaskSpec) -> TaskSpec:
    """Makes a task of one's own known under its name, and returns it. Registering an equal one again changes nothing.

    Worker processes get the specs of the tasks they play; a script need not register them there again.

    Raises:
        ConfigError: the name is that of another task, or of a domain or set of the 160.
    """
    if not isinstance(spec, TaskSpec):
        raise ConfigError(f"register takes a TaskSpec; got {spec!r}")
    taken = {"task": BUILTIN, "domain": DOMAINS, "task set": task_sets()["seed0"]}
    for what, names in taken.items():
        if spec.name in names and BUILTIN.get(spec.name) != spec:
            raise ConfigError(f"task {spec.name!r}: a {what} of the 160 tasks has this name; choose another")
    if spec.name in BUILTIN:
        return spec
    with _loading:
        known_one = _own.setdefault(spec.name, spec)
    if known_one != spec:
        raise ConfigError(f"another task {spec.name!r} is registered already: {known_one.to_dict()}; got {spec.to_dict()}")
    return spec


def register_file(path: str | Path) -> tuple[TaskSpec, ...]:
    """Registers the tasks of a TOML file, here and in processes started from now on, and returns them.

    Raises:
        ConfigError: as `read_tasks` and `register`.
    """
    specs = tuple(register(spec) for spec in read_tasks(Path(path)))
    named = os.environ.get(TASKS_VARIABLE, "").split(os.pathsep)
    if (whole := str(Path(path).expanduser().resolve())) not in named:
        os.environ[TASKS_VARIABLE] = os.pathsep.join([*filter(None, named), whole])
    return specs


def own_tasks() -> tuple[TaskSpec, ...]:
    """One's own tasks, in the order in which they were registered.

    Raises:
        ConfigError: a file that M3DT_TASKS names, or an installed package, describes a task that cannot be.
    """
    _load()
    return tuple(_own.values())


def known() -> tuple[TaskSpec, ...]:
    """The 160 tasks, and then one's own.

    Raises:
        ConfigError: as `own_tasks`.
    """
    return (*TASKS, *own_tasks())


def get(name: str) -> TaskSpec:
    """The task called `name`.

    Raises:
        UnknownTaskError: there is none; the message names the closest ones. ConfigError: as `own_tasks`.
    """
    if isinstance(name, str) and name in BUILTIN:
        return BUILTIN[name]
    return lookup({task.name: task for task in known()}, name, "task")


def registered(name: str) -> TaskSpec | None:
    """The task of this name, if it is one of the 160 or registered here.

    Raises:
        ConfigError: as `own_tasks`.
    """
    return BUILTIN.get(name) or next((task for task in own_tasks() if task.name == name), None)


def is_builtin(task: TaskSpec) -> bool:
    """Whether this is one of the 160 tasks."""
    return BUILTIN.get(task.name) == task


def by_domain(domain: str) -> tuple[TaskSpec, ...]:
    """All tasks of one domain, in the order of `known`.

    Raises:
        UnknownTaskError: no task has this domain. ConfigError: as `own_tasks`.
    """
    group = tuple(task for task in (TASKS if domain in DOMAINS else known()) if task.domain == domain)
    if not group:
        lookup({task.domain: task.domain for task in known()}, domain, "domain")
    return group


def padded_widths(tasks: Iterable[TaskSpec]) -> tuple[int, int]:
    """The widths of observations and actions of several tasks side by side: 39 and 8, or more if one of them is wider."""
    tasks = tuple(tasks)
    return max((MAX_OBS_DIM, *(t.obs_dim for t in tasks))), max((MAX_ACT_DIM, *(t.act_dim for t in tasks)))


def resolve(
    names: Iterable[str | TaskSpec] | TaskSpec, *, seed: int = 0, first: Iterable[TaskSpec] = ()
) -> tuple[TaskSpec, ...]:
    """The tasks that `names` mean: specs, or names of sets (drawn for `seed`), domains or tasks, in any mixture.

    One name or spec may stand alone. Every task is returned once, in the order of its first mention. A name of several kinds
    means the first of these.

    first: tasks that names mean before any others, such as those of a bank.

    Raises:
        UnknownTaskError: a name that is none of these.
        ConfigError: no collection at all, or two different specs of one name; as `own_tasks`.
    """
    if isinstance(names, str | TaskSpec):
        names = (names,)
    if not isinstance(names, Iterable):
        raise ConfigError(f"tasks must be names of tasks, sets or domains, or specs, in a list; got {names!r}")
    found: dict[str, TaskSpec] = {}
    before = {task.name: task for task in first}
    given: Iterable[Any] = names
    for name in given:
        if not isinstance(name, str | TaskSpec):
            get(name)  # an error that names it
        nearer = before.get(name) if isinstance(name, str) else None
        for task in _meant(name, seed) if nearer is None else (nearer,):
            if found.setdefault(task.name, task) != task:
                raise ConfigError(f"two different tasks are called {task.name!r}")
    return tuple(found.values())


def by_group(names: Iterable[str | TaskSpec]) -> dict[str, list[str]]:
    """Domain → its tasks among `names`: the domains of the 160 first, the 160 in the published order, then one's own.

    Names that this process does not know, as rows from elsewhere may have, come last, as the group "others".
    """
    table = {task.name: task for task in known()}
    given = {name if isinstance(name, str) else name.name: name for name in names}
    table.update((name, task) for name, task in given.items() if isinstance(task, TaskSpec))
    there = [task for name, task in table.items() if name in given]
    found = {
        domain: [task.name for task in there if task.domain == domain] for domain in (*DOMAINS, *(t.domain for t in there))
    }
    return {domain: of for domain, of in {**found, "others": [n for n in given if n not in table]}.items() if of}


def _meant(name: str | TaskSpec, seed: int) -> tuple[TaskSpec, ...]:
    if isinstance(name, TaskSpec):
        return (name,)
    if name in task_sets()["seed0"]:
        return task_set(name, seed)
    if name in DOMAINS:
        return by_domain(name)
    if name in BUILTIN:
        return (BUILTIN[name],)
    return tuple(task for task in own_tasks() if task.domain == name) or (get(name),)


def _load() -> None:
    """Reads M3DT_TASKS and the entry points, once; after an error the next lookup tries again."""
    global _loaded
    if _loaded:
        return
    with _loading:
        for path in filter(None, os.environ.get(TASKS_VARIABLE, "").split(os.pathsep)):
            for spec in read_tasks(Path(path)):
                register(spec)
        for point in entry_points(group=ENTRY_POINTS):
            try:
                specs = list(point.load()())
            except Exception as error:  # whatever the code of that package raises
                raise ConfigError(f"the entry point {point.name!r} of {_owner(point)} fails: {error!r}") from error
            for spec in specs:
                register(spec)
        _loaded = True


def _owner(point: object) -> str:
    distribution = getattr(point, "dist", None)
    return f"the package {distribution.name}" if distribution is not None else "an installed package"
