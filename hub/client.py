"""One repository on the Hugging Face Hub: list its files, fetch some, commit changes, set tags.

    look(revision) ──► Snapshot: sha, and size and hash of every file     one request; everything that follows uses this sha
    fetch(snapshot, names) ──► a folder of the local cache                every file is checked against the listed hashes
    commit(make, head) ──► Snapshot of the new head                       one atomic commit, made again if the head has moved

Reading goes through `transport`, `downloads` and `cache`, which trust nothing that a server says; what writes uses functions
of huggingface_hub. Three of those are avoided on purpose: `hf_hub_download` takes headers of the server as paths and does not
stop at the listed size, `snapshot_download` returns an old cached copy after a 401 or 503 without saying so, and
`upload_folder` makes several commits. A token is sent to the endpoint it was given for; the login that huggingface_hub keeps is
sent to huggingface.co only. Error messages name status codes and files, never addresses, which may carry signatures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RevisionNotFoundError
from tqdm import tqdm

from m3dt_agent.errors import ConfigError, HubConflictError, HubError
from m3dt_agent.hub.cache import RepoCache
from m3dt_agent.hub.downloads import DamagedError, download
from m3dt_agent.hub.endpoints import checked_endpoint, checked_token, is_repo_id
from m3dt_agent.hub.failures import ATTEMPTS, Caller, RefusedError, hub_errors, patiently, pause
from m3dt_agent.hub.redaction import redact_logs
from m3dt_agent.hub.snapshots import Change, Operation, Snapshot, require_commit_id
from m3dt_agent.hub.transport import Patience, Transport, bound_uploads
from m3dt_agent.system.disk import open_regular, path_errors, require_space
from m3dt_agent.system.documents import MAX_BYTES, checked_shape
from m3dt_agent.system.machine import shows_progress
from m3dt_agent.system.text import visible

RepoType = Literal["model", "dataset"]

COMMIT_ATTEMPTS = 8
"""Tries of a commit whose head keeps moving; each failed try means that somebody else's commit got in."""
_SHOWN = 1_000_000  # bytes from which a download shows its progress
_WORKERS = 8  # files downloaded at once; huggingface_hub uses the same number


class HubRepo:
    """One repository, accessed with one token. Creating the object makes no request.

    Args:
        token: None uses the login that huggingface_hub keeps (HF_TOKEN or `hf auth login`) if `endpoint` is huggingface.co, and
            no token at any other endpoint. Spaces around it are removed.
        endpoint: None uses HF_ENDPOINT, by default huggingface.co.
        cache_dir: None uses huggingface_hub's cache.
        offline: True makes no request at all; None follows HF_HUB_OFFLINE.

    Raises:
        ConfigError: `repo_id` is not of the form namespace/name, the endpoint is no address, the token holds characters that no
            token has, or M3DT_HUB_TIMEOUT or M3DT_HUB_MIN_SPEED in the environment is no number.
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
        self.endpoint = checked_endpoint(endpoint)
        self.cache = RepoCache(repo_id, repo_type, cache_dir)
        self.offline = huggingface_hub.is_offline_mode() if offline is None else offline
        token = checked_token(token, self.endpoint)
        self._caller = Caller(self.endpoint, repo_id, token)
        self._transport = Transport(self.endpoint, token, Patience.from_environment())
        self._api = HfApi(endpoint=self.endpoint, token=token or False, library_name="m3dt-agent")
        redact_logs()

    def __str__(self) -> str:
        return f"{self.repo_type} {self.repo_id}"

    # Reading

    def look(self, revision: str | None = None) -> Snapshot:
        """The repository at a branch, tag or sha (None: main).

        Raises:
            HubError: no such repository or revision, no access, the Hub cannot be reached, or offline.
        """
        if self.offline:
            wanted = visible(repr(revision or "main"))
            raise HubError(f"{self}: offline (HF_HUB_OFFLINE), and revision {wanted} is not in the cache")
        with self._errors(f"revision {visible(repr(revision or 'main'))}"):
            path = f"/api/{self.repo_type}s/{self.repo_id}"
            path += f"/revision/{quote(revision, safe='')}" if revision is not None else ""
            listing = patiently(lambda: self._transport.read_json(f"{path}?blobs=true", f"the listing of {self}"))
            return Snapshot.from_listing(listing, str(self))

    def head(self) -> Snapshot | None:
        """The newest commit of main, or None if the repository does not exist or the token may not see it.

        Raises:
            HubError: as `look`.
        """
        try:
            return self.look()
        except RefusedError as error:
            if error.no_repository:
                return None
            raise

    def tags(self) -> dict[str, str]:
        """Tag → sha.

        Raises:
            HubError: as `look`.
        """
        with self._errors("its tags"):
            path = f"/api/{self.repo_type}s/{self.repo_id}/refs"
            refs = patiently(lambda: self._transport.read_json(path, f"the list of tags of {self}"))
            found = checked_shape(refs.get("tags") or [], list[dict[str, Any]], HubError, name=f"the list of tags of {self}")
        return {str(tag.get("name")): require_commit_id(tag.get("targetCommit"), str(self)) for tag in found}

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
        size = sum(snapshot.files[name].size for name in missing)
        if missing:
            with path_errors(self.cache.path):
                self.cache.path.mkdir(parents=True, exist_ok=True)
            require_space(self.cache.path, size)
        hidden = size < _SHOWN or not shows_progress(None)
        with (
            tqdm(total=size, desc=self.repo_id, unit="B", unit_scale=True, disable=hidden) as bar,
            ThreadPoolExecutor(_WORKERS) as pool,
        ):
            list(pool.map(functools.partial(self._fetch_one, snapshot, bar.update), wanted))
        return self.cache.folder(snapshot.sha)

    def read(self, snapshot: Snapshot, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of a small file, brought into the cache.

        Raises:
            HubError: it has more than `max_bytes`, and as `fetch`. DiskSpaceError: no room.
        """
        listed = snapshot.files.get(name)
        if listed is not None and listed.size > max_bytes:
            raise HubError(f"{self} at {snapshot.sha[:12]}: {name} has {listed.size:,} bytes; at most {max_bytes:,} are read")
        self.fetch(snapshot, [name])
        with open_regular(self.cache.file(snapshot.sha, name)) as file:
            return file.read(max_bytes + 1)

    def fetch_into(self, folder: Path, snapshot: Snapshot, names: Iterable[str]) -> None:
        """Brings files into `folder`, under their names, without the cache. A file that is there with the right bytes is kept.

        Raises:
            HubError, DiskSpaceError: as `fetch`.
        """
        wanted = sorted(set(names))
        self._require_listed(snapshot, wanted)
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(functools.partial(self._fetch_into, folder, snapshot), wanted))

    # Writing

    def create(self, *, private: bool | None) -> None:
        """Creates the repository if it does not exist. private: None uses the account's own default.

        Raises:
            HubError: the token may not create it, or the Hub cannot be reached.
        """
        with self._errors("making it"):
            self._write(lambda: self._api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True))

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
            except RefusedError as error:
                if error.status != 412 and not (error.transient and attempt < ATTEMPTS):
                    raise
                pause(attempt if error.status != 412 else -1, error)
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
        with self._errors(f"tagging {visible(repr(name))}"):
            if name in tags:
                self._write(lambda: self._delete_tag(name))
            self._write(
                lambda: self._api.create_tag(self.repo_id, tag=name, revision=sha, repo_type=self.repo_type, exist_ok=True)
            )
        tags[name] = sha

    def remove_tag(self, name: str, tags: dict[str, str]) -> None:
        """Removes a tag, and updates `tags`, the caller's copy of all tags.

        Raises:
            HubError: refused, or the Hub cannot be reached.
        """
        with self._errors(f"removing tag {visible(repr(name))}"):
            self._write(lambda: self._delete_tag(name))
        tags.pop(name, None)

    # Details

    def _write(self, call: Callable[[], object]) -> None:
        """Makes a small change on the Hub."""
        patiently(lambda: self._transport.patience.within(call))

    def _send(self, change: Change, head: Snapshot) -> str:
        bound_uploads()
        info = self._api.create_commit(
            self.repo_id,
            [_fresh(operation) for operation in change.operations],
            commit_message=change.message,
            repo_type=self.repo_type,
            parent_commit=head.sha,
        )
        return require_commit_id(info.oid, str(self))

    def _delete_tag(self, name: str) -> None:
        with contextlib.suppress(RevisionNotFoundError):  # somebody else is moving it too
            self._api.delete_tag(self.repo_id, tag=name, repo_type=self.repo_type)

    def _require_listed(self, snapshot: Snapshot, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in snapshot.files and not self.cache.holds(snapshot.sha, [name])]
        if missing:
            raise HubError(f"{self} at {snapshot.sha[:12]} holds no {', '.join(missing)}")

    def _fetch_one(self, snapshot: Snapshot, advance: Callable[[int], object], name: str) -> None:
        listed = snapshot.files.get(name)
        if listed is not None and not self.cache.has(snapshot.sha, name, listed):
            bring = functools.partial(self._download, snapshot, name, advance=advance)
            self.cache.add(snapshot.sha, name, listed, bring)

    def _fetch_into(self, folder: Path, snapshot: Snapshot, name: str) -> None:
        target = folder / name
        with path_errors(target):
            if target.is_file() and snapshot.files[name].matches(target):
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(f"{secrets.token_hex(8)}.incomplete")
            try:
                self._download(snapshot, name, new)
                os.replace(new, target)
            finally:
                new.unlink(missing_ok=True)

    def _download(
        self, snapshot: Snapshot, name: str, target: Path, *, advance: Callable[[int], object] = lambda _: None
    ) -> None:
        """Writes a file to `target`, where nothing is. What arrives damaged is asked for once more."""
        kind = "datasets/" if self.repo_type == "dataset" else ""
        url = f"{self.endpoint}/{kind}{self.repo_id}/resolve/{snapshot.sha}/{quote(name)}"
        for last in (False, True):
            try:
                with self._errors(name):
                    download(self._transport, url, snapshot.files[name], target, advance)
                return
            except DamagedError as error:
                target.unlink(missing_ok=True)
                if last:
                    raise HubError(f"{self} at {snapshot.sha[:12]}: {name} arrived damaged twice: {error}") from None

    def _errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        return hub_errors(f"{self}, {what}", self._caller, self.cache.path)


def _fresh(operation: Operation) -> Operation:
    """A fresh copy: huggingface_hub marks an operation as done even if its commit fails."""
    return dataclasses.replace(operation) if isinstance(operation, CommitOperationAdd) else operation
