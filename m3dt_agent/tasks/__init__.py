"""Tasks as data: the 160 that come with this package, and one's own.

    spec.py       `TaskSpec`: widths, length, score rule, and which Gymnasium environment it is
    table.py      the 160 tasks and the published sets of them
    registry.py   which tasks this process knows, and what names mean
    files.py      tasks in TOML files

No simulator is imported, and nothing that a spec says is run.

    >>> from m3dt_agent import tasks
    >>> tasks.get("walker-run").obs_dim
    24
    >>> len(tasks.task_set("mt10", seed=0))
    10
"""

from .files import add_to_file, read_tasks, to_toml
from .names import lookup
from .registry import (
    by_domain,
    by_group,
    get,
    is_builtin,
    known,
    own_tasks,
    padded_widths,
    register,
    register_file,
    registered,
    resolve,
)
from .spec import LARGEST_WIDTH, LONGEST_EPISODE, Linear, ScoreRule, TaskSpec, score_of
from .table import BUILTIN, DOMAINS, MAX_ACT_DIM, MAX_OBS_DIM, TASKS, Domain, task_set

__all__ = [
    "BUILTIN",
    "DOMAINS",
    "LARGEST_WIDTH",
    "LONGEST_EPISODE",
    "MAX_ACT_DIM",
    "MAX_OBS_DIM",
    "TASKS",
    "Domain",
    "Linear",
    "ScoreRule",
    "TaskSpec",
    "add_to_file",
    "by_domain",
    "by_group",
    "get",
    "is_builtin",
    "known",
    "lookup",
    "own_tasks",
    "padded_widths",
    "read_tasks",
    "register",
    "register_file",
    "registered",
    "resolve",
    "score_of",
    "task_set",
    "to_toml",
]
