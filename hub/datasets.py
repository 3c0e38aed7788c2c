"""Collections of Minari datasets on the Hugging Face Hub: one repository, in Minari's own layout, pinned by a sha.

    datasets.json                                                  of every dataset: counts, mean return, sha256 of its files
    README.md                                                      a card made from it
    m3dt/namespace_metadata.json, m3dt/<task>/namespace_metadata.json
    m3dt/<task>/<source>-v0/data/metadata.json, main_data.hdf5

    push   validated datasets that are new there ──► a few commits, each with its datasets.json
    pull   datasets.json ──► those asked for ──► a staging folder, file by file ──► hashes, validation ──► renamed into the root

Minari's own remote makes about a hundred requests a dataset and cannot pin a revision. What is pulled is checked in the staging
folder, before any program that watches the root can see it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from tqdm import tqdm

from m3dt_agent import tasks as task_table
from m3dt_agent.config import DataConfig
from m3dt_agent.data.episodes import dataset_path, find_sources, make_namespaces
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.disk import disk_space_errors, file_lock, replace_folder, require_space
from m3dt_agent.errors import DatasetError, HubConflictError
from m3dt_agent.hub.cards import dataset_card
from m3dt_agent.hub.client import Change, HubRepo, Operation, Snapshot, is_repo_id, sha256_file
from m3dt_agent.hub.dataset_records import DATASET_FILES, DatasetRecord, Records, describe, from_json, require_sound, to_json
from m3dt_agent.tasks import TaskSpec

MAX_COMMITS = 8
"""A push of any size makes at most so many; a killed one repeats at most one of them."""
_SMALLEST_COMMIT = 32  # datasets
_MANIFEST, _CARD, _NAMESPACE = "datasets.json", "README.md", "namespace_metadata.json"
_NEUTRAL = {".gitattributes", ".gitignore", "LICENSE", _CARD}
_STAGING = ".pull"
_WORKERS = 4


@dataclass(frozen=True, slots=True)
class PushedDatasets:
    """What a push did. sha: the head now (None: a folder); datasets: the ids that travelled; commits: how many it took."""

    sha: str | None
    datasets: tuple[str, ...]
    commits: int


@dataclass(frozen=True, slots=True)
class PulledDatasets:
    """What a pull did. sha: the commit pulled (None: a folder); paths: dataset id → its folder; new: the ids that travelled."""

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
    """Brings the repository `name` (or a folder) up to the datasets of `tasks` (None: all) under the Minari root `root`.

    Datasets there that are not here stay. Called again after a kill it does what is missing, and uploads no file again.

    Args:
        source: only datasets of this source; None: all of them. private: of a repository that is made.
        overwrite: replace datasets that are there with other contents. progress: a bar; None: on a terminal.

    Raises:
        DatasetError: no such dataset, or one that does not validate. HubConflictError: another of the same name is there.
        HubError: not allowed, or a failing Hub.
    """
    tasks = None if tasks is None else tuple(tasks)
    found = _local(Path(root), tasks, source)
    if not is_repo_id(name):
        pulled = pull_datasets(root, name, tasks, source=source, overwrite=overwrite, progress=progress)
        return PushedDatasets(None, pulled.new, 0)
    repo = HubRepo(str(name), "dataset", token=token, endpoint=endpoint)
    head = repo.head()
    if head is None:
        repo.create(private=private)
        head = repo.look()
    there = _remote_records(repo, head)
    ours = {record.id: record for record in _bar((describe(path, task) for task, path in found), len(found), "check", progress)}
    new = [key for key, record in ours.items() if not _same_files(there.get(key), record)]
    push = _Push(repo, Path(root), ours, overwrite)
    size = max(_SMALLEST_COMMIT, -(-len(new) // MAX_COMMITS))
    commits, before = 0, head.sha
    for batch in _bar((new[i : i + size] for i in range(0, len(new), size)), -(-len(new) // size), "push", progress):
        head = repo.commit(lambda head, batch=tuple(batch): push.change(head, batch), head)  # type: ignore[misc]
        commits += head.sha != before
        before = head.sha
    return PushedDatasets(head.sha, tuple(new), commits)


class _Push:
    def __init__(self, repo: HubRepo, root: Path, ours: Records, overwrite: bool) -> None:
        self.repo, self.root, self.ours, self.overwrite = repo, root, ours, overwrite

    def change(self, head: Snapshot, ids: Sequence[str]) -> Change:
        """The datasets `ids` that the head has not got, with the manifest and card of everything it then has."""
        there = _remote_records(self.repo, head)
        new = [key for key in ids if not _same_files(there.get(key), self.ours[key])]
        if not self.overwrite and (clash := [key for key in new if key in there]):
            raise HubConflictError(
                f"{self.repo} holds other datasets called {', '.join(clash)}; give yours another source name, or overwrite them"
            )
        if not new:
            return Change("nothing new", [])
        records = dict(sorted((there | {key: self.ours[key] for key in new}).items()))
        operations: list[Operation] = [
            CommitOperationAdd(f"{key}/{name}", str(self.root / key / name)) for key in new for name in DATASET_FILES
        ]
        spaces = {"m3dt", *(key.rpartition("/")[0] for key in new)}
        empty = [f"{space}/{_NAMESPACE}" for space in sorted(spaces)]
        operations += [CommitOperationAdd(file, b"{}") for file in empty if file not in head.files]
        operations.append(CommitOperationAdd(_MANIFEST, to_json(records).encode()))
        card = dataset_card(self.repo.repo_id, [record.row for record in records.values()])
        operations.append(CommitOperationAdd(_CARD, card.encode()))
        return Change(f"{len(new)} dataset(s)", operations)


def _local(root: Path, tasks: Iterable[str | TaskSpec] | None, source: str | None) -> list[tuple[TaskSpec, Path]]:
    chosen = task_table.TASKS if tasks is None else task_table.resolve(tasks)
    found = [(task, path) for task in chosen for name, path in find_sources(root, task).items() if source in (None, name)]
    missing = [] if tasks is None else [task.name for task in chosen if task not in {task for task, _ in found}]
    if missing or not found:
        what = f" of {', '.join(missing)}" if missing else ""
        raise DatasetError(f"no dataset{what}{f' from source {source!r}' if source else ''} under {root}")
    return found


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
    """Brings the datasets of `tasks` (None: all) from the repository `name` (or a folder) into the Minari root `root`.

    A dataset appears whole and validated, or not at all. Called again after a kill it goes on where it was; what is there with
    the same hashes is kept, without a request if `revision` is a sha.

    Raises:
        DatasetError: the repository holds no such dataset, a dataset is damaged or names foreign code, or another of the same
            name is under `root` and not `overwrite`.
        HubError: no such repository or revision, no access, or a failing Hub. DiskSpaceError: no room.
    """
    root, tasks = Path(root), None if tasks is None else tuple(tasks)
    origin = _FolderOrigin(Path(name)) if not is_repo_id(name) else _hub_origin(str(name), revision, token, endpoint, cache_dir)
    chosen = _choose(origin.records(tasks, source), tasks, source, str(name))
    staging = root / _STAGING / origin.key
    with disk_space_errors(root), file_lock(root / _STAGING / f"{origin.key}.lock"):
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
    token: str | None = None,
    endpoint: str | None = None,
) -> TaskDatasets:
    """`TaskDatasets.open` after `pull_datasets`, here and wherever else these datasets are reopened: once per folder `root`.

    A token is not sent along: elsewhere it is that machine's own, as `huggingface_hub` finds it.

    Raises:
        As both.
    """
    root = Path(root).absolute()
    sha = pull_datasets(name, root, tasks, source=source, revision=revision, token=token, endpoint=endpoint).sha or revision
    reopen = functools.partial(open_pulled, name, root, tasks, source, revision=sha, config=config, endpoint=endpoint)
    return dataclasses.replace(TaskDatasets.open(root, tasks, source, config=config), reopen=reopen)


@dataclass(frozen=True, slots=True)
class _FolderOrigin:
    """Another Minari root on this machine."""

    path: Path
    sha: None = None

    @property
    def key(self) -> str:
        return "folder-" + hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:12]

    def records(self, tasks: Iterable[str | TaskSpec] | None, source: str | None) -> Records:
        found = _local(self.path, tasks, source)
        return {record.id: record for record in (describe(path, task) for task, path in found)}

    def fetch(self, record: DatasetRecord, staging: Path) -> None:
        for name in DATASET_FILES:
            target = staging / record.id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / record.id / name, target)


@dataclass(frozen=True, slots=True)
class _HubOrigin:
    """A repository at one commit."""

    repo: HubRepo
    snapshot: Snapshot
    found: Records

    @property
    def sha(self) -> str:
        return self.snapshot.sha

    @property
    def key(self) -> str:
        return f"{self.repo.repo_id.replace('/', '--')}-{self.sha[:12]}"

    def records(self, tasks: Iterable[str | TaskSpec] | None, source: str | None) -> Records:
        return self.found

    def fetch(self, record: DatasetRecord, staging: Path) -> None:
        snapshot = self.snapshot if self.snapshot.files else self.repo.look(self.sha)
        self.repo.fetch_into(staging, snapshot, [f"{record.id}/{name}" for name in DATASET_FILES])


def _hub_origin(
    name: str, revision: str | None, token: str | None, endpoint: str | None, cache_dir: str | Path | None
) -> _HubOrigin:
    repo = HubRepo(name, "dataset", token=token, endpoint=endpoint, cache_dir=cache_dir)
    known = repo.cached_sha(revision)
    if known is not None and (repo.offline or known == revision) and repo.cached(known, [_MANIFEST]):
        snapshot = Snapshot(known, {})
    else:
        snapshot = repo.look(revision)
        if _MANIFEST not in snapshot.files:
            held = ", ".join(sorted(snapshot.files)[:6]) or "nothing"
            raise DatasetError(
                f"{repo} at {snapshot.sha[:12]} is no collection of ours: it has no {_MANIFEST}; it holds {held}"
            )
        repo.remember(revision, snapshot.sha)
    return _HubOrigin(repo, snapshot, _remote_records(repo, snapshot))


def _bring(origin: _FolderOrigin | _HubOrigin, record: DatasetRecord, root: Path, staging: Path) -> None:
    """One dataset into the root."""
    built, target = staging / record.id, dataset_path(root, record.id)
    origin.fetch(record, staging)
    for name, file in record.files.items():
        if (found := sha256_file(built / name)) != file.sha256:
            (built / name).unlink()
            raise DatasetError(f"{record.id}/{name} is damaged: sha256 {found[:12]}…, {file.sha256[:12]}… in {_MANIFEST}")
    require_sound(built, task_table.get(record.task))
    make_namespaces(root, record.id)
    replace_folder(built, target)


def _choose(records: Records, tasks: Iterable[str | TaskSpec] | None, source: str | None, where: str) -> list[DatasetRecord]:
    wanted = None if tasks is None else [task.name for task in task_table.resolve(tasks)]
    chosen = [r for r in records.values() if (wanted is None or r.task in wanted) and source in (None, r.source)]
    missing = [task for task in wanted or () if task not in {record.task for record in chosen}]
    if missing or not chosen:
        what = f" of {', '.join(missing)}" if missing else ""
        raise DatasetError(
            f"{where} holds no dataset{what}{f' from source {source!r}' if source else ''}; it holds {len(records)}"
        )
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


def _remote_records(repo: HubRepo, snapshot: Snapshot) -> Records:
    if snapshot.files and _MANIFEST not in snapshot.files:
        if foreign := sorted(set(snapshot.files) - _NEUTRAL):
            raise DatasetError(
                f"{repo} holds something else than our datasets: {', '.join(foreign[:6])}; push to another repository"
            )
        return {}
    text = (repo.fetch(snapshot, [_MANIFEST]) / _MANIFEST).read_text(errors="replace")
    return from_json(text, f"{_MANIFEST} of {repo} at {snapshot.sha[:12]}")


def _same_files(there: DatasetRecord | None, here: DatasetRecord) -> bool:
    return there is not None and dict(there.files) == dict(here.files)


def _bar(items: Iterable[Any], total: int, what: str, progress: bool | None) -> Iterator[Any]:
    show = sys.stderr.isatty() if progress is None else progress
    yield from tqdm(items, total=total, desc=what, unit="step", disable=not show)
