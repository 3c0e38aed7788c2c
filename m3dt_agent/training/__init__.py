"""Training: `fit_stage` trains one stage of a bank, `group_tasks` groups its tasks, `estimate` measures the cost."""

from .expert_jobs import Fanout
from .fit import fit_stage
from .grouping import group_tasks
from .growth import fit_growth, grow, growth_config
from .logs import LogRecord
from .planning.cost import Estimate, estimate
from .tracking import TrackedRun, Tracker

__all__ = [
    "Estimate",
    "Fanout",
    "LogRecord",
    "TrackedRun",
    "Tracker",
    "estimate",
    "fit_growth",
    "fit_stage",
    "group_tasks",
    "grow",
    "growth_config",
]
