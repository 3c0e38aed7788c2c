"""Training: `fit_stage` (fit.py) trains one stage of a bank, `group_tasks` splits the tasks over the experts."""

from .cost import Estimate, estimate
from .expert_jobs import Fanout
from .fit import fit_stage, group_tasks
from .logs import LogRecord

__all__ = ["Estimate", "Fanout", "LogRecord", "estimate", "fit_stage", "group_tasks"]
