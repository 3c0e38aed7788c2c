"""The part of huggingface_hub's local cache that belongs to one repository, in huggingface_hub's own layout.

<cache>/models--<namespace>--<name>/
    blobs/<hash>          the bytes of a file, named by their own hash
    snapshots/<sha>/…     files of one commit, links into blobs/
    refs/<revision>       the sha that a branch or tag had when it was last pulled

Nothing here makes a request. What a server says becomes part of a path only after it was checked: ids of commits and hashes are
hexadecimal, names of files stay inside their folder. New bytes get a new name in blobs/ and are renamed into place, links are
replaced as links: so no file outside of this folder is ever written, replaced or removed, whatever a link here leads to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from m3dt_agent.errors import ConfigError, HubError, PathError
from m3dt_agent.hub.snapshots import RemoteFile, is_commit_id, is_safe_name
from m3dt_agent.system.disk import open_regular, path_errors, user_path, write_file
from m3dt_agent.system.text import visible

_ABANDONED_S = 86_400.0
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class RepoCache:
    """What the cache in `folder` (None: huggingface_hub's own) holds of a repository."""

    def __init__(self, repo_id: str, repo_type: str, folder: str | Path | None) -> None:
        self.path = user_path(folder or constants.HF_HUB_CACHE)
        self._storage = self.path / repo_folder_name(repo_id=repo_id, repo_type=repo_type)

    # Files of a commit

    def folder(self, sha: str) -> Path:
        """Where the files of a commit are, or would be.

        Raises:
            HubError: `sha` is not the id of a commit.
        """
        if not is_commit_id(sha):
            raise HubError(f"{visible(repr(sha), longest=80)} is not the id of a commit")
        return self._storage / "snapshots" / sha

    def file(self, sha: str, name: str) -> Path:
        """Where a file of a commit is, or would be.

        Raises:
            HubError: `sha` or `name` is none.
        """
        if not is_safe_name(name):
            raise HubError(f"{visible(repr(name), longest=200)} is no name of a file in a repository")
        return self.folder(sha) / name

    def holds(self, sha: str, names: Iterable[str]) -> bool:
        """Whether all these files of a commit are here.

        Raises:
            PathError: the cache cannot be read.
        """
        with path_errors(self._storage):
            return all(self.file(sha, name).is_file() for name in names)

    def has(self, sha: str, name: str, listed: RemoteFile) -> bool:
        """Whether a file of a commit is here with the bytes that the Hub lists. A link is made to bytes that other commits
        have brought here.

        Raises:
            PathError: the cache cannot be used.
        """
        with path_errors(self._storage):
            if (file := self.file(sha, name)).is_file() and listed.matches(file):
                return True
            blob = self._storage / "blobs" / listed.key
            if blob.is_symlink() or not blob.is_file() or not listed.matches(blob):
                return False
            self._link(sha, name, listed.key)
        return True

    def add(self, sha: str, name: str, listed: RemoteFile, bring: Callable[[Path], object]) -> None:
        """Makes a file of a commit of what `bring` writes to the new path that it is given, which must be what is listed.

        Raises:
            PathError: the cache cannot be used. DiskSpaceError: no room. Whatever `bring` raises; nothing has changed then.
        """
        with path_errors(self._storage):
            blobs = self._own_folder("blobs")
            _remove_abandoned(blobs)
            new = blobs / f"{listed.key}.{secrets.token_hex(8)}.incomplete"  # huggingface_hub's name for unfinished files
            try:
                bring(new)
                os.replace(new, blobs / listed.key)
            finally:
                new.unlink(missing_ok=True)
            self._link(sha, name, listed.key)

    def _link(self, sha: str, name: str, key: str) -> None:
        """Puts a link to the bytes called `key` where the file of that commit belongs; a copy where there are no links."""
        file = self.file(sha, name)
        folder = self._own_folder(*file.parent.relative_to(self._storage).parts)
        blob, new = self._storage / "blobs" / key, self._own_folder("blobs") / f"{secrets.token_hex(8)}.incomplete"
        try:
            try:
                os.symlink(os.path.relpath(blob, folder), new)
            except (OSError, NotImplementedError):
                shutil.copyfile(blob, new)
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)

    def _own_folder(self, *parts: str) -> Path:
        """A folder of this repository's cache, made if need be.

        Raises:
            PathError: a link on the way leads elsewhere.
        """
        folder = self._storage.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != self._storage.resolve().joinpath(*parts):
            raise PathError(f"{folder} leads out of the cache through a symbolic link; remove it, or use another cache folder")
        return folder

    # Branches and tags

    def sha_of(self, revision: str | None) -> str | None:
        """The sha that a branch or tag (None: main) had when it was last pulled, None if it never was; a sha stands for itself.

        Raises:
            ConfigError: a name that no branch or tag can have. PathError: the note cannot be read.
        """
        if revision is not None and is_commit_id(revision):
            return revision
        file = self._ref_file(revision)
        with path_errors(file):
            if not os.path.lexists(file):
                return None
            with open_regular(file) as opened:
                noted = opened.read(100).decode(errors="replace").strip()
        return noted if is_commit_id(noted) else None

    def remember(self, revision: str | None, sha: str) -> None:
        """Notes the sha of a branch or tag for `sha_of`, where huggingface_hub keeps its own notes. A cache that may only be
        read stays as it is.

        Raises:
            ConfigError: a name that no branch or tag can have. PathError: the note cannot be written for another reason.
        """
        if self.sha_of(revision) == sha:
            return
        file = self._ref_file(revision)
        try:
            with path_errors(file):
                write_file(self._own_folder(*file.parent.relative_to(self._storage).parts) / file.name, sha)
        except PathError as error:
            if getattr(error.__cause__, "errno", None) not in _READ_ONLY:
                raise

    def _ref_file(self, revision: str | None) -> Path:
        name = revision or constants.DEFAULT_REVISION
        if not isinstance(name, str) or not is_safe_name(name):
            raise ConfigError(f"revision must be a branch, tag or sha; got {visible(repr(revision), longest=200)}")
        return self._storage / "refs" / name


def _remove_abandoned(blobs: Path) -> None:
    """Removes what downloads that were killed have left: unfinished files that nobody has written to for a day."""
    for file in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - file.lstat().st_mtime > _ABANDONED_S:
                file.unlink()
