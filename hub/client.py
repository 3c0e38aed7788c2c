"""One repository on the Hugging Face Hub: what is asked of it, and what every failure is called.

    look(revision) ──► Snapshot: sha, and size and hash of every file        one request; the sha pins all that follows
    fetch(snapshot, names) ──► a folder of the local cache                   every file checked against the snapshot's hashes
    commit(change) ──► Snapshot of the new head                              one atomic commit; made anew if the head has moved

Why not `snapshot_download` and `upload_folder`: after a 401 or 503 the first returns an old cached copy without a word, checks
sizes only, and the second makes several commits. A token is sent only where it was meant for: the one given, or the login that
`huggingface_hub` keeps, and that one to huggingface.co alone. Messages name status codes and file names, never addresses, which
may carry signatures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from m3dt_agent.disk import disk_space_errors, require_space, write_file
from m3dt_agent.errors import ConfigError, HubConflictError, HubError, M3DTError
from m3dt_agent.hub.failures import ATTEMPTS, explain, is_transient, patiently, pause, status_of

RepoType = Literal["model", "dataset"]
Operation = CommitOperationAdd | CommitOperationDelete

OFFICIAL_ENDPOINT = "https://huggingface.co"
"""The only place the login kept by `huggingface_hub` is sent to."""
COMMIT_ATTEMPTS = 8
"""Tries of a commit whose head has moved; each of them means that somebody else got theirs in."""
_WORKERS = 8  # files downloaded at once, huggingface_hub's own number
_REPO_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]*/[\w-][\w.-]*")  # what huggingface_hub admits, with its namespace
_SHA = re.compile(r"[0-9a-f]{40}")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it. sha256: of an LFS or Xet file; git_oid: SHA-1 of any other, with git's header."""

    size: int
    git_oid: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit. files: path in the repository → what it is; empty for a sha known to be cached whole."""

    sha: str
    files: Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit does to the head it was made for. No operations: nothing needs doing."""

    message: str
    operations: Sequence[Operation]


def is_repo_id(name: str | Path) -> bool:
    """Whether `name` can be an id on the Hub (`namespace/name`) and is not an existing folder or a written-out path."""
    return isinstance(name, str) and _REPO_ID.fullmatch(name) is not None and not Path(name).is_dir()


class HubRepo:
    """One repository, reached with one token. Nothing is requested when it is made.

    token: of an account; None is the login that `huggingface_hub` keeps (HF_TOKEN or `hf auth login`) if `endpoint` is
    huggingface.co, and none anywhere else. endpoint: None is HF_ENDPOINT, by default huggingface.co. cache_dir: None is
    huggingface_hub's. offline: None is HF_HUB_OFFLINE; True makes no request at all.

    Raises:
        ConfigError: not an id of the form namespace/name.
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
        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
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
        """The newest commit of main, or None if there is no such repository (or none that the token may see).

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

        A file whose bytes are not those that the Hub lists is thrown away and fetched once more.

        Raises:
            HubError: a file that is not in the repository, cannot be had, or arrives damaged twice.
            DiskSpaceError: no room.
        """
        wanted = sorted(set(names))
        self._require_listed(snapshot, wanted)
        missing = [name for name in wanted if not self.cached(snapshot.sha, [name])]
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        require_space(self.cache_dir, sum(snapshot.files[name].size for name in missing))
        with disk_space_errors(self.cache_dir), ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(functools.partial(self._fetch_one, snapshot), wanted))
        return self.folder(snapshot.sha)

    def fetch_into(self, folder: Path, snapshot: Snapshot, names: Iterable[str]) -> None:
        """Brings files into `folder`, under their names, past the cache; what is there already is kept if its bytes are right.

        Raises:
            HubError, DiskSpaceError: as `fetch`.
        """
        wanted = sorted(set(names))
        self._require_listed(snapshot, wanted)
        with disk_space_errors(folder), ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(lambda name: self._fetch_one(snapshot, name, folder), wanted))

    def folder(self, sha: str) -> Path:
        """Where the cache keeps the files of a commit."""
        return self._storage / "snapshots" / sha

    def cached(self, sha: str, names: Iterable[str]) -> bool:
        """Whether the cache holds all these files of a commit."""
        return all((self.folder(sha) / name).is_file() for name in names)

    def cached_sha(self, revision: str | None) -> str | None:
        """The sha that a revision was when it was last pulled; the revision itself if it is a sha; None if not known."""
        if revision is not None and _SHA.fullmatch(revision):
            return revision
        file = self._ref_file(revision)
        return file.read_text().strip() if file.is_file() else None

    def remember(self, revision: str | None, sha: str) -> None:
        """Notes what a revision was, for `cached_sha`, where huggingface_hub keeps its own notes."""
        if revision is None or not _SHA.fullmatch(revision):
            file = self._ref_file(revision)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, sha.encode())

    # Writing

    def create(self, *, private: bool | None) -> None:
        """Makes the repository if there is none. private: None is the account's own default.

        Raises:
            HubError: the token may not.
        """
        with self._errors("making it"):
            patiently(lambda: self._api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True))

    def commit(self, make: Callable[[Snapshot], Change], head: Snapshot) -> Snapshot:
        """Commits the change that `make` makes for a head, and returns the new head; `head` itself if there is none to make.

        If somebody else has committed meanwhile (412), or it is not known whether the commit arrived, `make` is asked again for
        the head that is there now; a commit that did arrive then leaves nothing to do.

        Raises:
            HubConflictError: the head kept moving. HubError: refused, or the Hub cannot be reached.
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
        """Makes `name` point at `sha`; `tags` is what there is, and is kept up to date.

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
        """Removes a tag; `tags` is what there is, and is kept up to date.

        Raises:
            HubError: refused, or the Hub cannot be reached.
        """
        with self._errors(f"removing tag {name!r}"):
            patiently(lambda: self._delete_tag(name))
        tags.pop(name, None)

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
        with contextlib.suppress(RevisionNotFoundError):  # somebody else moves it too
            self._api.delete_tag(self.repo_id, tag=name, repo_type=self.repo_type)

    # Details

    @property
    def _storage(self) -> Path:
        return self.cache_dir / repo_folder_name(repo_id=self.repo_id, repo_type=self.repo_type)

    def _ref_file(self, revision: str | None) -> Path:
        name = revision or constants.DEFAULT_REVISION
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise ConfigError(f"revision must be a branch, tag or sha; got {revision!r}")
        return self._storage / "refs" / name

    def _require_listed(self, snapshot: Snapshot, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in snapshot.files and not self.cached(snapshot.sha, [name])]
        if missing:
            raise HubError(f"{self} at {snapshot.sha[:12]} holds no {', '.join(missing)}")

    def _fetch_one(self, snapshot: Snapshot, name: str, folder: Path | None = None) -> None:
        expected = snapshot.files.get(name)
        for last in (False, True):
            with self._errors(name):
                path = Path(patiently(lambda: self._download(snapshot.sha, name, folder)))
            if expected is None or _is(path, expected):
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
            cache_dir=None if folder else self.cache_dir,
            local_dir=folder,
            token=self._token or False,
            endpoint=self.endpoint,
            library_name="m3dt-agent",
        )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Every failure inside as a `HubError` that says what was being done; a full disk stays one."""
        try:
            with disk_space_errors(self.cache_dir):
                yield
        except M3DTError:
            raise
        except Exception as error:  # huggingface_hub, httpx and hf_xet raise whatever they like
            raise HubError(f"{self}, {what}: {explain(error, self.endpoint, self._token is not None)}") from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is(path: Path, expected: RemoteFile) -> bool:
    if path.stat().st_size != expected.size:
        return False
    if expected.sha256 is not None:
        return sha256_file(path) == expected.sha256
    digest = hashlib.sha1(b"blob %d\0" % expected.size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == expected.git_oid


def _fresh(operation: Operation) -> Operation:
    """huggingface_hub marks an operation as done even if its commit then fails."""
    return dataclasses.replace(operation) if isinstance(operation, CommitOperationAdd) else operation
