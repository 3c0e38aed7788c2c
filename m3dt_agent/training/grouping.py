"""Which expert gets which tasks: at random, or by how the tasks' gradients agree with their mean (M3DT section 4.2).

    aₜ = mean over batches b of  g_tb ⊙ ḡ_b            agreement of task t, one number per backbone parameter (P of them)
    Gram[s, t] = aₛ · aₜ                               (n, n) for n tasks
    coordinates = V √Λ,  Gram = V Λ Vᵀ                 (n, n): distances between rows are those between the aₜ, exactly

K-means on the coordinates is K-means on the agreement vectors, without 160 × 5.3M float64 numbers in memory: the vectors are
stored once, as float32, in a nameless temporary file and are read in blocks of columns.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bank import ExpertBank
from ..config import ExpertsConfig, train_preset
from ..data.batches import derive_seed
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, StageError
from ..model.determinism import cpu_threads
from ..system.disk import disk_space_errors
from ..system.platforms import reserve
from .checkpoint import started_runs, training_lock
from .conflict import mean_gradient, task_gradients
from .distributed import joined
from .logs import announce
from .planning.resume import preset_of
from .planning.settling import with_precision
from .stage_inputs import StageInputs, check_data, require_trained_tasks

KMEANS_STARTS = 40
"""Starts per K-means run, of which the tightest is used (from the authors' code)."""
_BLOCK = 1 << 16  # columns of the agreement matrix in memory at once


def group_tasks(
    data: TaskDatasets, bank: ExpertBank, config: ExpertsConfig | None = None, *, progress: bool | None = None
) -> dict[str, int]:
    """Groups the tasks as `config` says and keeps the groups (task → expert) in the bank.

    If the bank has groups that were made with the same settings, these are kept. Every worker that torchrun or Ray Train starts
    calls this; worker 0 groups for all.

    Raises:
        StageError: no backbone (for grouping by gradients), or experts were already trained in other groups.
        ConfigError: more experts than tasks.
        BankError: the data's tasks are not the bank's, or another process trains the bank.
        WorkerError: another worker failed or was lost.
    """
    check_data(data, bank)
    require_trained_tasks(bank)
    bank.require_writable()
    with joined("cpu") as world:
        groups = world.from_main(lambda: _group_locked(data, bank, config, progress))
        if not world.is_main:
            bank.refresh(check="sizes")
    return groups


def group_for_stage(inputs: StageInputs[ExpertsConfig], progress: bool | None) -> dict[str, int]:
    """The bank's groups, whatever they were made with; makes them if there are none.

    Raises:
        StageError, ConfigError: as `group_tasks`.
    """
    return _group(inputs, progress) if inputs.bank.groups is None else inputs.bank.groups


def _group_locked(data: TaskDatasets, bank: ExpertBank, config: ExpertsConfig | None, progress: bool | None) -> dict[str, int]:
    with training_lock(bank.path):
        bank.refresh(check="sizes")
        asked = train_preset(preset_of(bank.config), "experts") if config is None else config
        if not isinstance(asked, ExpertsConfig):
            raise ConfigError(f"grouping takes an ExpertsConfig; got {type(asked).__name__}")
        settled = with_precision(asked, bank.config, "cpu")
        if bank.groups is not None and bank.manifest.grouping == _settings(settled):
            return bank.groups
        if bank.finished_experts or started_runs(bank.path, "experts"):
            raise StageError(
                f"experts of bank {bank.path} were trained in groups made with {bank.manifest.grouping}, which cannot change"
            )
        with cpu_threads(settled.threads or torch.get_num_threads()):
            return _group(StageInputs(data=data, bank=bank, config=settled), progress)


def _group(inputs: StageInputs[ExpertsConfig], progress: bool | None) -> dict[str, int]:
    """Makes new groups and keeps them in the bank."""
    bank = inputs.bank
    if inputs.config.grouping == "gradient" and bank.status("backbone") != "done":
        raise StageError(
            f"grouping by gradients needs a backbone; bank {bank.path} has none yet; run fit_stage('backbone', ...) first"
        )
    announce(
        f"grouping {len(inputs.data.tasks)} tasks for {bank.config.n_experts} experts ({inputs.config.grouping})", progress
    )
    groups = make_groups(inputs)
    bank.commit({}, groups=groups, grouping=_settings(inputs.config))
    return groups


def _settings(config: ExpertsConfig) -> dict[str, Any]:
    """The settings on which the groups depend."""
    names = ["grouping", "seed"]
    if config.grouping == "gradient":
        names += ["grouping_batches", "grouping_runs", "batch_size", "grad_clip", "precision"]
    if config.domain_experts:
        names.append("domain_experts")
    return {name: getattr(config, name) for name in names}


def make_groups(inputs: StageInputs[ExpertsConfig]) -> dict[str, int]:
    """Task → expert, as `inputs.config.grouping` says; every expert has a task.

    Raises:
        ConfigError: more experts than tasks, or no experts at all.
        DiskSpaceError: no room for the agreement vectors.
    """
    tasks, config = inputs.data.tasks, inputs.config
    parts = expert_parts([task.domain for task in tasks], inputs.bank.config.n_experts, config.domain_experts)
    seed = derive_seed(config.seed, "experts", 0, 0, "grouping")
    gram = agreement_gram(inputs) if config.grouping == "gradient" else None
    labels, first = np.empty(len(tasks), np.int64), 0
    for members, count in parts:
        if gram is None:
            own = random_partition(len(members), count, seed)
        else:
            own = gradient_partition(gram[np.ix_(members, members)], count, config.grouping_runs, seed)
        labels[members] = first + own
        first += count
    return dict(zip([task.name for task in tasks], labels.tolist(), strict=True))


def expert_parts(
    domains: Sequence[str], n_experts: int, domain_experts: Mapping[str, int]
) -> list[tuple[NDArray[np.int64], int]]:
    """Which tasks share which number of experts: those of each domain of `domain_experts`, then all others.

    Args:
        domains: of the tasks.

    Raises:
        ConfigError: a part has fewer tasks than experts, or tasks and no expert.
    """
    found = [(np.flatnonzero([of == domain for of in domains]), count) for domain, count in domain_experts.items()]
    others = np.flatnonzero([of not in domain_experts for of in domains])
    left = n_experts - sum(domain_experts.values())
    if len(others) or left:
        found.append((others, left))
    names = [f" of {domain}" for domain in domain_experts] + ([" of other domains"] if domain_experts else [""])
    for (members, count), whose in zip(found, names, strict=False):
        if not 1 <= count <= len(members):
            raise ConfigError(
                f"{len(members)} tasks{whose} cannot be grouped for {count} experts{whose and f' of {n_experts}'}; "
                "each expert needs at least one task, and each task an expert"
            )
    return found


def random_partition(n_tasks: int, n_groups: int, seed: int) -> NDArray[np.int64]:
    """Labels (n_tasks,) of groups whose sizes differ by at most one."""
    labels = np.empty(n_tasks, np.int64)
    labels[np.random.default_rng(seed).permutation(n_tasks)] = np.arange(n_tasks) % n_groups
    return labels


def agreement_gram(inputs: StageInputs[ExpertsConfig]) -> NDArray[np.float64]:
    """Inner products (n, n) of the tasks' agreement vectors at the bank's backbone, clipped gradients, dropout 0."""
    model, config = inputs.bank.model(), inputs.config
    if config.precision == "float64":
        model.double()
    parameters = model.backbone_tensors()
    sampler = inputs.sampler(inputs.data)
    size = sum(p.numel() for p in parameters.values())

    def gradients(batch: int) -> Callable[[], Iterator[Tensor]]:
        return lambda: task_gradients(model, parameters, sampler, batch, clip=config.grad_clip)

    with _scratch_matrix(len(inputs.data.tasks), size, inputs.bank.path / "resume") as agreement:
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
    """K-means labels (n,) from inner products (n, n), of the run with the most equal group sizes; ties go to the tightest.

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
            warnings.simplefilter("ignore", ConvergenceWarning)  # equal points: _filled mends it
            labels = _filled(kmeans.fit(points).labels_.astype(np.int64), points, n_groups)
        quality = float(np.bincount(labels, minlength=n_groups).std()), float(kmeans.inertia_)
        if quality < best:
            best, chosen = quality, labels
    _, first = np.unique(chosen, return_index=True)
    return np.argsort(np.argsort(first))[chosen]


def _coordinates(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, n) with these inner products, divided by a common factor that brings them to order 1."""
    values, vectors = np.linalg.eigh(gram)
    scale = values[-1] if values[-1] > 0 else 1.0
    points: NDArray[np.float64] = vectors * np.sqrt(np.clip(values / scale, 0.0, None))
    return points


def _filled(labels: NDArray[np.int64], points: NDArray[np.float64], n_groups: int) -> NDArray[np.int64]:
    """`labels`, with every empty group given the point that is farthest from the centre of the largest group."""
    labels = labels.copy()
    for empty in np.flatnonzero(np.bincount(labels, minlength=n_groups) == 0):
        members = np.flatnonzero(labels == np.bincount(labels, minlength=n_groups).argmax())
        distances = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        labels[members[distances.argmax()]] = empty
    return labels


@contextlib.contextmanager
def _scratch_matrix(n_rows: int, n_columns: int, folder: Path) -> Iterator[NDArray[np.float32]]:
    """A zeroed float32 matrix in a nameless file in `folder`, which disappears when the block ends or the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        with disk_space_errors(folder):
            reserve(file.fileno(), 4 * n_rows * n_columns)
        yield np.memmap(file, np.float32, "r+", shape=(n_rows, n_columns))
