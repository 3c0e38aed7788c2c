"""Evaluation: episodes with fixed seeds in, one row per episode out. Scores are computed from rows by `m3dt_agent.scores`.

policies.py     what can be evaluated            rollout.py      the episodes, in one process
parallel.py     the episodes, in many jobs       held_out.py     errors on demonstrations, without a simulator
one_episode.py  one episode, timed               videos.py       episodes as GIF or MP4
"""

from ..scores import EpisodeResult, Summary, read_rows, summarize, write_rows
from .held_out import action_error, best_prompt_sampler, router_usage
from .one_episode import Played, play
from .parallel import evaluate_in_jobs
from .policies import AgentPolicy, BehaviorPolicies, VectorPolicy
from .rollout import evaluate, installed_versions

__all__ = [
    "AgentPolicy",
    "BehaviorPolicies",
    "EpisodeResult",
    "Played",
    "Summary",
    "VectorPolicy",
    "action_error",
    "best_prompt_sampler",
    "evaluate",
    "evaluate_in_jobs",
    "installed_versions",
    "play",
    "read_rows",
    "router_usage",
    "summarize",
    "write_rows",
]
