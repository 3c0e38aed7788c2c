"""Which expert gets which tasks: at random, or by how the tasks' gradients agree with their mean (M3DT section 4.2).

    aₜ = mean over batches b of  g_tb ⊙ ḡ_b            agreement of task t, one number per backbone parameter (P of them)
    Gram[s, t] = aₛ · aₜ                               (n, n) for n tasks
    coordinates = V √Λ,  Gram = V Λ Vᵀ                 (n, n): distances between rows are those between the aₜ, exactly

K-means on the coordinates is K-means on the agreement vectors, without 160 × 5.3M float64 numbers in memory: the vectors lie
once, as float32, in a scratch file without a name, and are read in blocks of columns.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import ExpertsConfig
from ..data.batches import derive_seed
from ..disk import disk_space_errors
from ..errors import ConfigError
from .conflict import mean_gradient, task_gradients
from .stage_inputs import Job

KMEANS_STARTS = 40
"""Starts per K-means run, of which the tightest counts (the authors' code)."""
_BLOCK = 1 << 16  # columns of the agreement matrix in memory at once


def make_groups(job: Job[ExpertsConfig]) -> dict[str, int]:
    """Task → expert, as `job.config.grouping` says; every expert has a task.

    Raises:
        ConfigError: more experts than tasks, or no experts at all.
        DiskSpaceError: no room for the agreement vectors.
    """
    names, n_experts = [task.name for task in job.data.tasks], job.bank.config.n_experts
    if not 1 <= n_experts <= len(names):
        raise ConfigError(f"{len(names)} tasks cannot be grouped for {n_experts} experts; each expert needs at least one task")
    seed = derive_seed(job.config.seed, "experts", 0, 0, "grouping")
    if job.config.grouping == "random":
        labels = random_partition(len(names), n_experts, seed)
    else:
        labels = gradient_partition(agreement_gram(job), n_experts, job.config.grouping_runs, seed)
    return dict(zip(names, labels.tolist(), strict=True))


def random_partition(n_tasks: int, n_groups: int, seed: int) -> NDArray[np.int64]:
    """Labels (n_tasks,) of groups whose sizes differ by at most one."""
    labels = np.empty(n_tasks, np.int64)
    labels[np.random.default_rng(seed).permutation(n_tasks)] = np.arange(n_tasks) % n_groups
    return labels


def agreement_gram(job: Job[ExpertsConfig]) -> NDArray[np.float64]:
    """Inner products (n, n) of the tasks' agreement vectors at the bank's backbone, clipped gradients, dropout 0."""
    model, config = job.bank.model(), job.config
    if config.precision == "float64":
        model.double()
    parameters = model.backbone_tensors()
    sampler = job.sampler(job.data)
    size = sum(p.numel() for p in parameters.values())

    def gradients(batch: int) -> Callable[[], Iterator[Tensor]]:
        return lambda: task_gradients(model, parameters, sampler, batch, clip=config.grad_clip)

    with _scratch_matrix(len(job.data.tasks), size, job.bank.path / "resume") as agreement:
        for batch in range(config.grouping_batches):
            mean = mean_gradient(gradients(batch))
            for task, gradient in enumerate(gradients(batch)()):
                agreement[task] += (gradient * mean / config.grouping_batches).float().numpy()
        return gram_matrix(agreement)


def gram_matrix(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """`rows @ rows.T` (n, n) of (n, P), summed in float64, a block of columns at a time."""
    gram = np.zeros((len(rows), len(rows)))
    for first in range(0, rows.shape[1], _BLOCK):
        block = rows[:, first : first + _BLOCK].astype(np.float64)
        gram += block @ block.T
    return gram


def gradient_partition(gram: NDArray[np.float64], n_groups: int, runs: int, seed: int) -> NDArray[np.int64]:
    """K-means labels (n,) from inner products (n, n): of `runs` runs, the one with the most equal sizes, then the tightest.

    Groups are numbered by their first task. No group is empty.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = _coordinates(gram)
    best: tuple[float, float] = (math.inf, math.inf)
    chosen = np.zeros(len(points), np.int64)
    for run in range(runs):
        kmeans = KMeans(n_groups, n_init=KMEANS_STARTS, random_state=(seed + run) % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # equal points: fewer clusters than groups, mended below
            labels = _filled(kmeans.fit(points).labels_.astype(np.int64), points, n_groups)
        quality = float(np.bincount(labels, minlength=n_groups).std()), float(kmeans.inertia_)
        if quality < best:
            best, chosen = quality, labels
    _, first = np.unique(chosen, return_index=True)
    return np.argsort(np.argsort(first))[chosen]


def _coordinates(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, n) with these inner products, up to one common factor that brings them to order 1."""
    values, vectors = np.linalg.eigh(gram)
    scale = values[-1] if values[-1] > 0 else 1.0
    points: NDArray[np.float64] = vectors * np.sqrt(np.clip(values / scale, 0.0, None))
    return points


def _filled(labels: NDArray[np.int64], points: NDArray[np.float64], n_groups: int) -> NDArray[np.int64]:
    """`labels` with every empty group given the point farthest from the centre of the largest group."""
    labels = labels.copy()
    for empty in np.flatnonzero(np.bincount(labels, minlength=n_groups) == 0):
        members = np.flatnonzero(labels == np.bincount(labels, minlength=n_groups).argmax())
        distances = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        labels[members[distances.argmax()]] = empty
    return labels


@contextlib.contextmanager
def _scratch_matrix(n_rows: int, n_columns: int, folder: Path) -> Iterator[NDArray[np.float32]]:
    """A zeroed float32 matrix in a nameless file of `folder`, which is gone when the block ends or the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        with disk_space_errors(folder):
            os.posix_fallocate(file.fileno(), 0, 4 * n_rows * n_columns)  # a full disk is an error here, not a SIGBUS later
        yield np.memmap(file, np.float32, "r+", shape=(n_rows, n_columns))
