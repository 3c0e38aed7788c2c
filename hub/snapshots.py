"""Records of a repository on the Hub: what it holds at one commit, and what the next commit changes.

Snapshot ── files ──► RemoteFile      what the Hub lists, against which every download is checked
Change ── operations                  what one commit adds and deletes

A listing was written by somebody else, and parts of it become names on this disk: so ids of commits and hashes must be
hexadecimal, and names of files relative ones that stay inside a folder, before anything is done with them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from m3dt_agent.errors import HubError
from m3dt_agent.system.documents import checked_shape
from m3dt_agent.system.text import visible

Operation = CommitOperationAdd | CommitOperationDelete

CARD = "README.md"
"""The file that the Hub shows as a repository's page."""
NEUTRAL_FILES = frozenset({".gitattributes", ".gitignore", "LICENSE", CARD})
"""Files that do not show what a repository is for; the Hub creates the first one itself."""
_BLOCK = 1 << 20  # bytes read at once
_SHOWN = 6  # names in an error message
_LONGEST_NAME = 200  # bytes of one part of a name; file systems take 255
_COMMIT_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile("[0-9a-f]{64}")
_DRIVE = re.compile("[A-Za-z]:")
_LARGEST = 1 << 50  # bytes


def is_commit_id(text: object) -> bool:
    """Whether this is the whole id of a commit: 40 (SHA-1) or 64 (SHA-256) hexadecimal digits."""
    return isinstance(text, str) and _COMMIT_ID.fullmatch(text) is not None


def require_commit_id(text: object, where: str) -> str:
    """Checks an id of a commit that a Hub sent. where: the repository, for the error.

    Raises:
        HubError: it is none.
    """
    if isinstance(text, str) and is_commit_id(text):
        return text
    raise HubError(
        f"{where}: the Hub gives {visible(repr(text), longest=80)} as the id of a commit, which must be 40 hex digits"
    )


def is_safe_name(name: str) -> bool:
    """Whether `name` is a relative path with "/" that stays inside its folder on every system."""
    parts = name.split("/")
    inside = all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)
    return inside and name.isprintable() and "\\" not in name and _DRIVE.match(name) is None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it. Files in LFS or Xet have a `sha256`; any other has None there and is known by `git_oid`, the
    SHA-1 that git computes."""

    size: int
    git_oid: str
    sha256: str | None

    @property
    def key(self) -> str:
        """The hash of its bytes, by which the cache names them."""
        return self.sha256 or self.git_oid

    def new_digest(self) -> hashlib._Hash:
        """What computes `key` from the file's bytes."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)  # git hashes this header before the bytes

    def matches(self, path: Path) -> bool:
        """Whether the local file at `path` holds exactly these bytes."""
        if path.stat().st_size != self.size:
            return False
        digest = self.new_digest()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest() == self.key


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit. files: path in the repository → what the Hub lists. `files` is empty if nobody asked the Hub,
    because the cache holds everything of that commit."""

    sha: str
    files: Mapping[str, RemoteFile]

    @classmethod
    def from_listing(cls, listing: Mapping[str, Any], where: str) -> Snapshot:
        """What a Hub answers about a repository, checked. where: the repository, for errors.

        Raises:
            HubError: an id or hash that is none, or a name that leads elsewhere; the message quotes it.
        """
        entries = checked_shape(listing.get("siblings") or [], list[dict[str, Any]], HubError, name=f"the listing of {where}")
        return cls(require_commit_id(listing.get("sha"), where), dict(_listed(entry, where) for entry in entries))

    def foreign(self, own: Iterable[str] = ()) -> list[str]:
        """The first files besides `own` and the neutral ones, sorted: signs that the repository is for something else."""
        return sorted(set(self.files) - NEUTRAL_FILES - set(own))[:_SHOWN]

    def listing(self) -> str:
        """The names of the first files, for error messages."""
        return ", ".join(sorted(self.files)[:_SHOWN]) or "nothing"


def _listed(entry: Mapping[str, Any], where: str) -> tuple[str, RemoteFile]:
    """The name and the record of one file of a listing."""
    name, size, oid, lfs = (entry.get(key) for key in ("rfilename", "size", "blobId", "lfs"))
    if not isinstance(name, str) or not is_safe_name(name):
        raise HubError(
            f"{where}: the Hub lists a file called {visible(repr(name), longest=200)}, which is no name of a file there"
        )
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    known = lfs is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None)
    if type(size) is not int or not 0 <= size <= _LARGEST or not is_commit_id(oid) or not known:
        raise HubError(f"{where}: the Hub lists {name} without a size and hashes that can be")
    return name, RemoteFile(size, str(oid), sha256)


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does to the head it was made for. Without operations there is nothing to commit."""

    message: str
    operations: Sequence[Operation]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
