"""Evaluation: runs episodes with fixed seeds and gives one row per episode; `m3dt_agent.scores` makes scores of rows.

policies.py      what can be evaluated            rollout.py     episodes in one process
schedule.py      which slot runs which episode    parallel.py    episodes in many jobs
one_episode.py   one episode, timed               videos.py      episodes as GIF, WebP or MP4
kept.py          rows on disk as episodes end
held_out.py      errors on demonstrations, without a simulator
"""

from ..scores import EpisodeResult, Summary, read_rows, summarize, write_rows
from .held_out import action_error, best_prompt_sampler, router_usage, router_usage_of_blocks
from .one_episode import Played, play
from .parallel import evaluate_in_jobs
from .policies import AgentPolicy, BehaviorPolicies, VectorPolicy
from .rollout import check_rows, evaluate, installed_versions

__all__ = [
    "AgentPolicy",
    "BehaviorPolicies",
    "EpisodeResult",
    "Played",
    "Summary",
    "VectorPolicy",
    "action_error",
    "best_prompt_sampler",
    "check_rows",
    "evaluate",
    "evaluate_in_jobs",
    "installed_versions",
    "play",
    "read_rows",
    "router_usage",
    "router_usage_of_blocks",
    "summarize",
    "write_rows",
]
