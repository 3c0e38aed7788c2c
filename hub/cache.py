"""The part of huggingface_hub's local cache that belongs to one repository.

<cache>/models--<namespace>--<name>/
    snapshots/<sha>/…     files of one commit, links into blobs/
    refs/<revision>       the sha that a branch or tag had when it was last pulled
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from m3dt_agent.disk import write_file
from m3dt_agent.errors import ConfigError

_SHA = re.compile(r"[0-9a-f]{40}")


class RepoCache:
    """What the cache in `folder` (None: huggingface_hub's own) holds of a repository. Nothing here makes a request."""

    def __init__(self, repo_id: str, repo_type: str, folder: str | Path | None) -> None:
        self.path = Path(folder or constants.HF_HUB_CACHE).expanduser()
        self._storage = self.path / repo_folder_name(repo_id=repo_id, repo_type=repo_type)

    def folder(self, sha: str) -> Path:
        """Where the files of a commit are, or would be."""
        return self._storage / "snapshots" / sha

    def holds(self, sha: str, names: Iterable[str]) -> bool:
        """Whether all these files of a commit are here."""
        return all((self.folder(sha) / name).is_file() for name in names)

    def sha_of(self, revision: str | None) -> str | None:
        """The sha that a branch or tag (None: main) had when it was last pulled, None if it never was; a sha stands for itself.

        Raises:
            ConfigError: as `remember`.
        """
        if revision is not None and _SHA.fullmatch(revision):
            return revision
        file = self._ref_file(revision)
        return file.read_text().strip() if file.is_file() else None

    def remember(self, revision: str | None, sha: str) -> None:
        """Notes the sha of a branch or tag for `sha_of`, where huggingface_hub keeps its own notes.

        Raises:
            ConfigError: a name that no branch or tag can have.
        """
        if revision is None or not _SHA.fullmatch(revision):
            file = self._ref_file(revision)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, sha.encode())

    def _ref_file(self, revision: str | None) -> Path:
        name = revision or constants.DEFAULT_REVISION
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise ConfigError(f"revision must be a branch, tag or sha; got {revision!r}")
        return self._storage / "refs" / name
