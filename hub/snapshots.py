"""Records of a repository on the Hub: what it holds at one commit, and what the next commit changes.

Snapshot ── files ──► RemoteFile      what the Hub lists, against which every download is checked
Change ── operations                  what one commit adds and deletes
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

Operation = CommitOperationAdd | CommitOperationDelete

CARD = "README.md"
"""The file that the Hub shows as a repository's page."""
NEUTRAL_FILES = frozenset({".gitattributes", ".gitignore", "LICENSE", CARD})
"""Files that do not show what a repository is for; the Hub creates the first one itself."""
_BLOCK = 1 << 20  # bytes read at once
_SHOWN = 6  # names in an error message


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it. Files in LFS or Xet have a `sha256`; any other has None there and is known by `git_oid`, the
    SHA-1 that git computes."""

    size: int
    git_oid: str
    sha256: str | None

    def matches(self, path: Path) -> bool:
        """Whether the local file at `path` holds exactly these bytes."""
        if path.stat().st_size != self.size:
            return False
        return sha256_file(path) == self.sha256 if self.sha256 is not None else _git_oid(path, self.size) == self.git_oid


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit. files: path in the repository → what the Hub lists. `files` is empty if nobody asked the Hub,
    because the cache holds everything of that commit."""

    sha: str
    files: Mapping[str, RemoteFile]

    def foreign(self, own: Iterable[str] = ()) -> list[str]:
        """The first files besides `own` and the neutral ones, sorted: signs that the repository is for something else."""
        return sorted(set(self.files) - NEUTRAL_FILES - set(own))[:_SHOWN]

    def listing(self) -> str:
        """The names of the first files, for error messages."""
        return ", ".join(sorted(self.files)[:_SHOWN]) or "nothing"


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does to the head it was made for. Without operations there is nothing to commit."""

    message: str
    operations: Sequence[Operation]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_oid(path: Path, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # git hashes this header before the bytes
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
