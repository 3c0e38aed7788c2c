"""Collections of Minari datasets on the Hugging Face Hub: one repository in Minari's own layout, pinned by a sha.

    datasets.json                                                  of every dataset: counts, mean return, sha256 of its files
    README.md                                                      a card made from it
    m3dt/namespace_metadata.json, m3dt/<task>/namespace_metadata.json
    m3dt/<task>/<source>-v0/data/metadata.json, main_data.hdf5

    push   datasets that are new there, validated ──► a few commits, each with its datasets.json
    pull   datasets.json ──► those asked for ──► a staging folder, file by file ──► hashes, validation ──► renamed into the root

Minari's own remote makes about a hundred requests for a dataset and cannot pin a revision. A pulled dataset is checked in the
staging folder, before any program that watches the root can see it.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd
from tqdm import tqdm

from m3dt_agent import tasks as task_table
from m3dt_agent.config import DataConfig
from m3dt_agent.data.episodes import dataset_path, make_namespaces
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError, HubConflictError
from m3dt_agent.hub.cards import dataset_card
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.dataset_origins import (
    MANIFEST,
    FolderOrigin,
    HubOrigin,
    hub_origin,
    local_datasets,
    no_dataset,
    remote_records,
)
from m3dt_agent.hub.dataset_records import DATASET_FILES, DatasetRecord, Records, describe, require_sound, to_json
from m3dt_agent.hub.endpoints import is_repo_id
from m3dt_agent.hub.pushes import Push
from m3dt_agent.hub.snapshots import CARD, Change, Operation, Snapshot, sha256_file
from m3dt_agent.system.disk import file_lock, path_errors, replace_folder, require_space, restore_replaced, user_path
from m3dt_agent.system.machine import shows_progress
from m3dt_agent.tasks import TaskSpec

T = TypeVar("T")

MAX_COMMITS = 8
"""Most commits of one push, whatever its size; a push that was killed repeats at most one of them."""
_SMALLEST_COMMIT = 32  # datasets
_NAMESPACE = "namespace_metadata.json"
_STAGING = ".pull"
_WORKERS = 4  # datasets pulled at once


@dataclass(frozen=True, slots=True)
class PushedDatasets:
    """What a push did. sha: the head now (None: a folder); datasets: the ids of those sent; commits: how many it took."""

    sha: str | None
    datasets: tuple[str, ...]
    commits: int


@dataclass(frozen=True, slots=True)
class PulledDatasets:
    """What a pull did. sha: the commit (None: a folder); paths: dataset id → its folder; new: the ids of those fetched."""

    sha: str | None
    paths: Mapping[str, Path]
    new: tuple[str, ...]


# Pushing


def push_datasets(
    root: str | Path,
    name: str | Path,
    tasks: Iterable[str | TaskSpec] | None = None,
    *,
    source: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    private: bool | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> PushedDatasets:
    """Adds the datasets of `tasks` (None: all) under the Minari root `root` to the repository (or folder) `name`.

    Datasets that are only there stay. Called again after a kill it sends what is missing, and uploads no file twice.

    Args:
        source: only datasets of this source; None: all of them. private: for a repository that is created.
        overwrite: replace datasets that have other contents there. progress: show a bar; None: if stderr is a terminal.

    Raises:
        DatasetError: no such dataset, or one that does not validate. HubConflictError: another of the same name is there.
        HubError: not allowed, or the Hub cannot be reached.
    """
    tasks = None if tasks is None else tuple(tasks)
    root = user_path(root)
    found = local_datasets(root, tasks, source)
    if not is_repo_id(name):
        pulled = pull_datasets(root, name, tasks, source=source, overwrite=overwrite, progress=progress)
        return PushedDatasets(None, pulled.new, 0)
    push = Push(HubRepo(str(name), "dataset", token=token, endpoint=endpoint), private=private)
    there = remote_records(push.repo, push.head)
    ours = {record.id: record for record in _bar((describe(path, task) for task, path in found), len(found), "check", progress)}
    new = [key for key, record in ours.items() if not _same_files(there.get(key), record)]
    size = max(_SMALLEST_COMMIT, -(-len(new) // MAX_COMMITS))
    batches = [{key: ours[key] for key in new[i : i + size]} for i in range(0, len(new), size)]
    for batch in _bar(batches, len(batches), "push", progress):
        push.commit(functools.partial(_change, push.repo, root, batch, overwrite=overwrite))
    return PushedDatasets(push.head.sha, tuple(new), push.commits)


def _change(repo: HubRepo, root: Path, batch: Records, head: Snapshot, *, overwrite: bool) -> Change:
    """The datasets of `batch` that the head does not have, with the manifest and card of everything it then has."""
    there = remote_records(repo, head)
    new = {key: record for key, record in batch.items() if not _same_files(there.get(key), record)}
    if not overwrite and (clash := [key for key in new if key in there]):
        raise HubConflictError(
            f"{repo} holds other datasets called {', '.join(clash)}; give yours another source name, or overwrite them"
        )
    if not new:
        return Change("nothing new", [])
    records = dict(sorted((there | new).items()))
    operations: list[Operation] = [
        CommitOperationAdd(f"{key}/{name}", str(root / key / name)) for key in new for name in DATASET_FILES
    ]
    spaces = {"m3dt", *(key.rpartition("/")[0] for key in new)}
    empty = [f"{space}/{_NAMESPACE}" for space in sorted(spaces)]
    operations += [CommitOperationAdd(file, b"{}") for file in empty if file not in head.files]
    operations.append(CommitOperationAdd(MANIFEST, to_json(records).encode()))
    card = dataset_card(repo.repo_id, [record.row for record in records.values()])
    operations.append(CommitOperationAdd(CARD, card.encode()))
    return Change(f"{len(new)} dataset(s)", operations)


# Pulling


def pull_datasets(
    name: str | Path,
    root: str | Path,
    tasks: Iterable[str | TaskSpec] | None = None,
    *,
    source: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> PulledDatasets:
    """Brings the datasets of `tasks` (None: all) from the repository (or folder) `name` into the Minari root `root`.

    A dataset appears whole and validated, or not at all. Called again after a kill, it continues where it stopped. A dataset
    that is there with the same hashes is kept, without a request if `revision` is a sha.

    Raises:
        DatasetError: the repository holds no such dataset, a dataset is damaged or names foreign code, or another dataset of
            the same name is under `root` and `overwrite` is not set.
        HubError: no such repository or revision, no access, or the Hub cannot be reached. DiskSpaceError: no room.
    """
    root, tasks = user_path(root), None if tasks is None else tuple(tasks)
    origin: FolderOrigin | HubOrigin = FolderOrigin(user_path(name))
    if is_repo_id(name):
        origin = hub_origin(HubRepo(str(name), "dataset", token=token, endpoint=endpoint, cache_dir=cache_dir), revision)
    chosen = _choose(origin.records(tasks, source), tasks, source, str(name))
    staging = root / _STAGING / origin.key
    with path_errors(root), file_lock(root / _STAGING / f"{origin.key}.lock"):
        for record in chosen:
            restore_replaced(dataset_path(root, record.id).parent)
        missing = [record for record in chosen if not _is_here(root, record, overwrite)]
        if missing:
            root.mkdir(parents=True, exist_ok=True)
            require_space(root, sum(file.bytes for record in missing for file in record.files.values()))
        with ThreadPoolExecutor(_WORKERS) as pool:
            jobs = pool.map(lambda record: _bring(origin, record, root, staging), missing)
            for _ in _bar(jobs, len(missing), "pull", progress):
                pass
        shutil.rmtree(staging, ignore_errors=True)
    paths = {record.id: dataset_path(root, record.id) for record in chosen}
    return PulledDatasets(origin.sha, paths, tuple(record.id for record in missing))


def open_pulled(
    name: str,
    root: str | Path,
    tasks: Sequence[str],
    source: str | None = None,
    *,
    revision: str | None = None,
    config: DataConfig | None = None,
    cache: str | Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> TaskDatasets:
    """`TaskDatasets.open` after `pull_datasets`. A copy of the result that is reopened on another machine pulls there too, once
    for each folder `root`.

    The token is not sent to other machines: each uses its own, as huggingface_hub finds it.

    Raises:
        As both.
    """
    root = user_path(root).absolute()
    sha = pull_datasets(name, root, tasks, source=source, revision=revision, token=token, endpoint=endpoint).sha or revision
    reopen = functools.partial(
        open_pulled, name, root, tasks, source, revision=sha, config=config, cache=cache, endpoint=endpoint
    )
    return dataclasses.replace(TaskDatasets.open(root, tasks, source, config=config, cache=cache), reopen=reopen)


def _bring(origin: FolderOrigin | HubOrigin, record: DatasetRecord, root: Path, staging: Path) -> None:
    """Brings one dataset into the root."""
    built, target = staging / record.id, dataset_path(root, record.id)
    origin.fetch(record, staging)
    for name, file in record.files.items():
        if (found := sha256_file(built / name)) != file.sha256:
            (built / name).unlink()
            raise DatasetError(f"{record.id}/{name} is damaged: sha256 {found[:12]}…, {file.sha256[:12]}… in {MANIFEST}")
    require_sound(built, task_table.get(record.task))
    make_namespaces(root, record.id)
    replace_folder(built, target)


def _choose(records: Records, tasks: Iterable[str | TaskSpec] | None, source: str | None, where: str) -> list[DatasetRecord]:
    wanted = None if tasks is None else [task.name for task in task_table.resolve(tasks)]
    chosen = [r for r in records.values() if (wanted is None or r.task in wanted) and source in (None, r.source)]
    missing = [task for task in wanted or () if task not in {record.task for record in chosen}]
    if missing or not chosen:
        raise DatasetError(f"{where} holds {no_dataset(missing, source)}; it holds {len(records)} datasets")
    return chosen


def _is_here(root: Path, record: DatasetRecord, overwrite: bool) -> bool:
    path = dataset_path(root, record.id)
    if not path.exists():
        return False
    if all((path / name).is_file() and sha256_file(path / name) == file.sha256 for name, file in record.files.items()):
        return True
    if not overwrite:
        raise DatasetError(f"{path} exists and holds something else; remove it, or overwrite it")
    return False


def _same_files(there: DatasetRecord | None, here: DatasetRecord) -> bool:
    return there is not None and dict(there.files) == dict(here.files)


def _bar(items: Iterable[T], total: int, what: str, progress: bool | None) -> Iterator[T]:
    yield from tqdm(items, total=total, desc=what, unit="step", disable=not shows_progress(progress))
