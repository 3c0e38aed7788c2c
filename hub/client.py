"""One repository on the Hugging Face Hub: list its files, fetch some, commit changes, set tags.

    look(revision) ──► Snapshot: sha, and size and hash of every file     one request; everything that follows uses this sha
    fetch(snapshot, names) ──► a folder of the local cache                every file is checked against the listed hashes
    commit(make, head) ──► Snapshot of the new head                       one atomic commit, made again if the head has moved

Two functions of huggingface_hub are avoided on purpose. `snapshot_download` returns an old cached copy after a 401 or 503
without saying so, and checks sizes only; `upload_folder` makes several commits. A token is sent to the endpoint it was given
for; the login that huggingface_hub keeps is sent to huggingface.co only. Error messages name status codes and files, never
addresses, which may carry signatures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from m3dt_agent.disk import disk_space_errors, require_space
from m3dt_agent.errors import ConfigError, HubConflictError, HubError, M3DTError
from m3dt_agent.hub.cache import RepoCache
from m3dt_agent.hub.failures import ATTEMPTS, explain, is_transient, patiently, pause, status_of
from m3dt_agent.hub.snapshots import Change, Operation, RemoteFile, Snapshot

RepoType = Literal["model", "dataset"]

OFFICIAL_ENDPOINT = "https://huggingface.co"
"""The only endpoint that receives the login kept by huggingface_hub."""
COMMIT_ATTEMPTS = 8
"""Tries of a commit whose head keeps moving; each failed try means that somebody else's commit got in."""
_WORKERS = 8  # files downloaded at once; huggingface_hub uses the same number
_REPO_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # huggingface_hub's rule, with a namespace


def is_repo_id(name: str | Path) -> bool:
    """Whether `name` has the form of an id on the Hub (`namespace/name`) and no folder of that name exists here."""
    return isinstance(name, str) and _REPO_ID.fullmatch(name) is not None and not Path(name).is_dir()


class HubRepo:
    """One repository, accessed with one token. Creating the object makes no request.

    Args:
        token: None uses the login that huggingface_hub keeps (HF_TOKEN or `hf auth login`) if `endpoint` is huggingface.co, and
            no token at any other endpoint.
        endpoint: None uses HF_ENDPOINT, by default huggingface.co.
        cache_dir: None uses huggingface_hub's cache.
        offline: True makes no request at all; None follows HF_HUB_OFFLINE.

    Raises:
        ConfigError: `repo_id` is not of the form namespace/name.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: RepoType,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        offline: bool | None = None,
    ) -> None:
        if not is_repo_id(repo_id):
            raise ConfigError(f"{repo_id!r} is neither a folder here nor an id on the Hub (namespace/name)")
        self.repo_id, self.repo_type = repo_id, repo_type
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.cache = RepoCache(repo_id, repo_type, cache_dir)
        self.offline = huggingface_hub.is_offline_mode() if offline is None else offline
        kept = huggingface_hub.get_token() if self.endpoint == OFFICIAL_ENDPOINT else None
        self._token = token or kept
        self._api = HfApi(endpoint=self.endpoint, token=self._token or False, library_name="m3dt-agent")

    def __str__(self) -> str:
        return f"{self.repo_type} {self.repo_id}"

    # Reading

    def look(self, revision: str | None = None) -> Snapshot:
        """The repository at a branch, tag or sha (None: main).

        Raises:
            HubError: no such repository or revision, no access, the Hub cannot be reached, or offline.
        """
        if self.offline:
            raise HubError(f"{self}: offline (HF_HUB_OFFLINE), and revision {revision or 'main'!r} is not in the cache")
        with self._errors(f"revision {revision or 'main'!r}"):
            info = patiently(
                lambda: self._api.repo_info(self.repo_id, revision=revision, repo_type=self.repo_type, files_metadata=True)
            )
        siblings = getattr(info, "siblings", None) or ()
        files = {s.rfilename: RemoteFile(s.size or 0, s.blob_id or "", s.lfs.sha256 if s.lfs else None) for s in siblings}
        return Snapshot(str(info.sha), files)

    def head(self) -> Snapshot | None:
        """The newest commit of main, or None if the repository does not exist or the token may not see it.

        Raises:
            HubError: as `look`.
        """
        try:
            return self.look()
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
                return None
            raise

    def tags(self) -> dict[str, str]:
        """Tag → sha.

        Raises:
            HubError: as `look`.
        """
        with self._errors("its tags"):
            refs = patiently(lambda: self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def fetch(self, snapshot: Snapshot, names: Iterable[str]) -> Path:
        """Brings files into the cache and returns the folder that holds the repository as of that commit.

        A file whose bytes are not those that the Hub lists is deleted and fetched once more.

        Raises:
            HubError: a file is not in the repository, cannot be downloaded, or arrives damaged twice.
            DiskSpaceError: no room.
        """
        wanted = sorted(set(names))
        self._require_listed(snapshot, wanted)
        missing = [name for name in wanted if not self.cache.holds(snapshot.sha, [name])]
        self.cache.path.mkdir(parents=True, exist_ok=True)
        require_space(self.cache.path, sum(snapshot.files[name].size for name in missing))
        with disk_space_errors(self.cache.path), ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(functools.partial(self._fetch_one, snapshot), wanted))
        return self.cache.folder(snapshot.sha)

    def fetch_into(self, folder: Path, snapshot: Snapshot, names: Iterable[str]) -> None:
        """Brings files into `folder`, under their names, without the cache. A file that is there with the right bytes is kept.

        Raises:
            HubError, DiskSpaceError: as `fetch`.
        """
        wanted = sorted(set(names))
        self._require_listed(snapshot, wanted)
        with disk_space_errors(folder), ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(lambda name: self._fetch_one(snapshot, name, folder), wanted))

    # Writing

    def create(self, *, private: bool | None) -> None:
        """Creates the repository if it does not exist. private: None uses the account's own default.

        Raises:
            HubError: the token may not create it, or the Hub cannot be reached.
        """
        with self._errors("making it"):
            patiently(lambda: self._api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True))

    def commit(self, make: Callable[[Snapshot], Change], head: Snapshot) -> Snapshot:
        """Commits the change that `make` returns for `head`, and returns the new head, or `head` if the change is empty.

        If the head has moved (412), or if it is unknown whether the commit arrived, `make` is called for the newest head.
        If the commit had arrived after all, that change is empty.

        Raises:
            HubConflictError: the head moved at every try. HubError: refused, or the Hub cannot be reached.
            Whatever `make` raises.
        """
        for attempt in range(COMMIT_ATTEMPTS):
            change = make(head)
            if not change.operations:
                return head
            try:
                with self._errors(f"committing {change.message!r}"):
                    sent = self._send(change, head)
            except HubError as error:
                status = status_of(error.__cause__)
                if status != 412 and not (is_transient(error.__cause__) and attempt < ATTEMPTS):
                    raise
                pause(attempt if status != 412 else -1, error.__cause__)
                head = self.look()
            else:
                return self.look(sent)
        raise HubConflictError(f"{self}: others kept committing; gave up after {COMMIT_ATTEMPTS} tries; try again later")

    def set_tag(self, name: str, sha: str, tags: dict[str, str]) -> None:
        """Points tag `name` at `sha`, and updates `tags`, the caller's copy of all tags.

        Raises:
            HubError: refused, or the Hub cannot be reached.
        """
        if tags.get(name) == sha:
            return
        with self._errors(f"tagging {name!r}"):
            if name in tags:
                patiently(lambda: self._delete_tag(name))
            patiently(
                lambda: self._api.create_tag(self.repo_id, tag=name, revision=sha, repo_type=self.repo_type, exist_ok=True)
            )
        tags[name] = sha

    def remove_tag(self, name: str, tags: dict[str, str]) -> None:
        """Removes a tag, and updates `tags`, the caller's copy of all tags.

        Raises:
            HubError: refused, or the Hub cannot be reached.
        """
        with self._errors(f"removing tag {name!r}"):
            patiently(lambda: self._delete_tag(name))
        tags.pop(name, None)

    # Details

    def _send(self, change: Change, head: Snapshot) -> str:
        info = self._api.create_commit(
            self.repo_id,
            [_fresh(operation) for operation in change.operations],
            commit_message=change.message,
            repo_type=self.repo_type,
            parent_commit=head.sha,
        )
        return info.oid

    def _delete_tag(self, name: str) -> None:
        with contextlib.suppress(RevisionNotFoundError):  # somebody else is moving it too
            self._api.delete_tag(self.repo_id, tag=name, repo_type=self.repo_type)

    def _require_listed(self, snapshot: Snapshot, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in snapshot.files and not self.cache.holds(snapshot.sha, [name])]
        if missing:
            raise HubError(f"{self} at {snapshot.sha[:12]} holds no {', '.join(missing)}")

    def _fetch_one(self, snapshot: Snapshot, name: str, folder: Path | None = None) -> None:
        expected = snapshot.files.get(name)
        for last in (False, True):
            with self._errors(name):
                path = Path(patiently(lambda: self._download(snapshot.sha, name, folder)))
            if expected is None or expected.matches(path):
                return
            path.resolve().unlink(missing_ok=True)  # the cache keeps the bytes in blobs/, and a link to them
            path.unlink(missing_ok=True)
            if last:
                raise HubError(f"{self} at {snapshot.sha[:12]}: {name} arrived damaged twice")

    def _download(self, sha: str, name: str, folder: Path | None) -> str:
        return huggingface_hub.hf_hub_download(
            self.repo_id,
            name,
            repo_type=self.repo_type,
            revision=sha,
            cache_dir=None if folder else self.cache.path,
            local_dir=folder,
            token=self._token or False,
            endpoint=self.endpoint,
            library_name="m3dt-agent",
        )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turns every failure inside into a `HubError` that says what was being done; a full disk stays a `DiskSpaceError`."""
        try:
            with disk_space_errors(self.cache.path):
                yield
        except M3DTError:
            raise
        except Exception as error:  # huggingface_hub, httpx and hf_xet raise exceptions of many kinds
            raise HubError(f"{self}, {what}: {explain(error, self.endpoint, self._token is not None)}") from error


def _fresh(operation: Operation) -> Operation:
    """A fresh copy: huggingface_hub marks an operation as done even if its commit fails."""
    return dataclasses.replace(operation) if isinstance(operation, CommitOperationAdd) else operation
