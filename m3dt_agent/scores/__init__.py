"""Scores of episodes: rows on disk, means and intervals, figures.

rows.py   what is kept of an episode      summaries.py   scores and intervals of rows
plots.py  scores as figures (needs matplotlib)
"""

from .rows import EpisodeResult, read_rows, write_rows
from .summaries import (
    AGENT_POLICIES,
    EXPERT_POLICY,
    Floats,
    Interval,
    Summary,
    TaskSummary,
    interquartile_mean,
    summarize,
    wilson_interval,
)

__all__ = [
    "AGENT_POLICIES",
    "EXPERT_POLICY",
    "EpisodeResult",
    "Floats",
    "Interval",
    "Summary",
    "TaskSummary",
    "interquartile_mean",
    "read_rows",
    "summarize",
    "wilson_interval",
    "write_rows",
]
