"""Independent jobs, in processes of this machine or on a Ray cluster.

engines.py says what a job and an engine are, run.py runs jobs, processes.py and ray_tasks.py are the two engines.
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
