"""Where datasets are pulled from: another Minari root on this machine, or a repository on the Hub at one commit.

Both answer the same two questions: which datasets there are (`records`), and the files of one of them (`fetch`).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from m3dt_agent import tasks as task_table
from m3dt_agent.data.episodes import find_sources, unknown_tasks
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.dataset_records import DATASET_FILES, DatasetRecord, Records, describe, from_json
from m3dt_agent.hub.snapshots import Snapshot
from m3dt_agent.system.disk import open_regular, path_errors
from m3dt_agent.tasks import TaskSpec

log = logging.getLogger(__name__)

MANIFEST = "datasets.json"
_BLOCK = 1 << 20  # bytes copied at once


def _key(*source: str) -> str:
    """The name of the staging folder of a source: a hash of ours, whatever a server calls its commits."""
    return hashlib.sha256("\n".join(source).encode(errors="surrogateescape")).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class FolderOrigin:
    """Another Minari root on this machine."""

    path: Path
    sha: None = None

    @property
    def key(self) -> str:
        """Name of its staging folder."""
        return _key("folder", str(self.path.absolute()))

    def records(self, tasks: Iterable[str | TaskSpec] | None, source: str | None) -> Records:
        """The datasets of `tasks` (None: all) and `source` (None: all), validated.

        Raises:
            DatasetError: a task has none, or one does not validate.
        """
        found = local_datasets(self.path, tasks, source)
        return {record.id: record for record in (describe(path, task) for task, path in found)}

    def fetch(self, record: DatasetRecord, staging: Path) -> None:
        """Copies the files of one dataset into the folder `staging`."""
        for name in DATASET_FILES:
            target = staging / record.id / name
            with path_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_regular(self.path / record.id / name) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, _BLOCK)


@dataclass(frozen=True, slots=True)
class HubOrigin:
    """A repository at one commit. `found`: what its `datasets.json` lists."""

    repo: HubRepo
    snapshot: Snapshot
    found: Records

    @property
    def sha(self) -> str:
        """The commit."""
        return self.snapshot.sha

    @property
    def key(self) -> str:
        """Name of its staging folder."""
        return _key("hub", self.repo.endpoint, self.repo.repo_id, self.sha)

    def records(self, tasks: Iterable[str | TaskSpec] | None, source: str | None) -> Records:
        """All datasets there, whatever is asked for."""
        return self.found

    def fetch(self, record: DatasetRecord, staging: Path) -> None:
        """Downloads the files of one dataset into the folder `staging`.

        Raises:
            DatasetError: a file is not as long as `datasets.json` says.
            HubError, DiskSpaceError: as `HubRepo.fetch_into`.
        """
        snapshot = self.snapshot if self.snapshot.files else self.repo.look(self.sha)
        for name, file in record.files.items():
            listed = snapshot.files.get(f"{record.id}/{name}")
            if listed is not None and listed.size != file.bytes:
                there = f"{record.id}/{name} has {listed.size:,} bytes, and {file.bytes:,} in its {MANIFEST}"
                raise DatasetError(f"{self.repo} at {self.sha[:12]} is damaged: {there}")
        self.repo.fetch_into(staging, snapshot, [f"{record.id}/{name}" for name in DATASET_FILES])


def hub_origin(repo: HubRepo, revision: str | None) -> HubOrigin:
    """The collection in `repo` at `revision`; no request is made for a sha whose `datasets.json` the cache holds.

    Raises:
        DatasetError: the repository is not a collection of datasets. HubError: as `HubRepo.look`.
    """
    known = repo.cache.sha_of(revision)
    if known is not None and (repo.offline or known == revision) and repo.cache.holds(known, [MANIFEST]):
        snapshot = Snapshot(known, {})
    else:
        snapshot = repo.look(revision)
        if MANIFEST not in snapshot.files:
            raise DatasetError(
                f"{repo} at {snapshot.sha[:12]} is not a collection of datasets: it has no {MANIFEST}; it holds "
                f"{snapshot.listing()}"
            )
        repo.cache.remember(revision, snapshot.sha)
    return HubOrigin(repo, snapshot, remote_records(repo, snapshot))


def remote_records(repo: HubRepo, snapshot: Snapshot) -> Records:
    """What the repository's `datasets.json` lists; empty if the repository is new.

    Raises:
        DatasetError: the repository holds something else, or its `datasets.json` is damaged. HubError: as `HubRepo.fetch`.
    """
    if snapshot.files and MANIFEST not in snapshot.files:
        if foreign := snapshot.foreign():
            raise DatasetError(f"{repo} holds something other than datasets: {', '.join(foreign)}; push to another repository")
        return {}
    return from_json(repo.read(snapshot, MANIFEST), f"{MANIFEST} of {repo} at {snapshot.sha[:12]}")


def local_datasets(root: Path, tasks: Iterable[str | TaskSpec] | None, source: str | None) -> list[tuple[TaskSpec, Path]]:
    """The datasets under `root` of `tasks` (None: all) and `source` (None: all), each with its folder.

    Raises:
        DatasetError: a task has none.
    """
    chosen = task_table.known() if tasks is None else task_table.resolve(tasks)
    found = [(task, path) for task in chosen for name, path in find_sources(root, task).items() if source in (None, name)]
    missing = [] if tasks is None else [task.name for task in chosen if task not in {task for task, _ in found}]
    unknown = unknown_tasks(root) if tasks is None else ""
    if missing or not found:
        raise DatasetError(f"{no_dataset(missing, source)} under {root}{unknown and '; '}{unknown}")
    if unknown:
        log.warning("%s", unknown)
    return found


def no_dataset(tasks: Iterable[str], source: str | None) -> str:
    """The beginning of an error message: no dataset of these tasks, from this source."""
    names = ", ".join(tasks)
    return f"no dataset{f' of {names}' if names else ''}{f' from source {source!r}' if source else ''}"
