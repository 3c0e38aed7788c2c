"""Independent jobs, in processes of this machine or on a Ray cluster.

engines.py defines jobs and engines, run.py runs jobs, and processes.py and ray_tasks.py do so on the two engines.
"""

from .engines import RETRIES, Engine, Failure, Job, LocalProcesses, RayCluster, attempt, runs_here, shard_of
from .run import opened, run_jobs

__all__ = [
    "RETRIES",
    "Engine",
    "Failure",
    "Job",
    "LocalProcesses",
    "RayCluster",
    "attempt",
    "opened",
    "run_jobs",
    "runs_here",
    "shard_of",
]
