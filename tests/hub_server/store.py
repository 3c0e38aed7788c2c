"""What the loopback Hub keeps: repositories (commits, branches, tags) and the bytes of their files by hash.

    root/
      objects/<git sha1>       a regular file
      objects/<sha256>         an LFS file; also a Xet file once somebody asked for it without Xet
      cas/                     hf_xet's local store (local://): xorbs, and shards that name files by sha256 and Xet hash

A commit is a whole tree, path → StoredFile, and never changes. The owner of a repository and whom it was granted to may write.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHARD_RECORD = 48  # bytes: header, file header, segment, verification entry and metadata of a shard are all this long
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30  # flags of a shard's file header
CHUNK_HEADER = 8  # bytes before each chunk of a xorb
SHARD_END = b"\xff" * 32  # in place of a file's hash


class RefusedError(Exception):
    """A request that the Hub answers with an HTTP error; `code` is the Hub's X-Error-Code where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})


@dataclass(frozen=True)
class StoredFile:
    """One file of a tree: `oid` is the git sha1 of the file, or of its LFS pointer where `sha256` is set."""

    size: int
    oid: str
    sha256: str | None = None
    pointer_size: int = 0
    xet_hash: str | None = None

    @property
    def key(self) -> str:
        """The name of its bytes in `objects/`, and its ETag."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """A whole tree with its title; `date` in seconds since the epoch."""

    tree: Mapping[str, StoredFile]
    title: str
    parent: str | None
    date: float

    @property
    def iso_date(self) -> str:
        """The date as the Hub writes it."""
        return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.date))


@dataclass
class Repo:
    """A repository; `kind` is "models" or "datasets", as in the Hub's routes."""

    kind: str
    repo_id: str
    owner: str
    private: bool = False
    gated: bool = False
    writers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Mapping[str, StoredFile], title: str) -> str:
        """Move a branch to a new commit with this tree; returns its sha."""
        parent = self.branches.get(branch)
        identity = [{path: file.key for path, file in tree.items()}, title, parent, len(self.commits), self.repo_id]
        sha = hashlib.sha1(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.commits[sha] = Commit(dict(tree), title, parent, time.time())
        self.branches[branch] = sha
        return sha

    def sha(self, revision: str) -> str:
        """The commit behind a branch, a tag, a full ref or a whole sha; 404 RevisionNotFound otherwise."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        found = self.branches.get(name) or self.tags.get(name) or (name if name in self.commits else None)
        if found is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def tree(self, revision: str = "main") -> Mapping[str, StoredFile]:
        """Path → file at a revision."""
        return self.commits[self.sha(revision)].tree

    def history(self, revision: str) -> Iterator[tuple[str, Commit]]:
        """The commits from a revision back to the first."""
        sha: str | None = self.sha(revision)
        while sha is not None:
            yield sha, self.commits[sha]
            sha = self.commits[sha].parent


@dataclass(frozen=True)
class ShardFile:
    """A file that hf_xet stored: its hashes, and the xorb and chunk in which it begins."""

    sha256: str
    xet_hash: str
    xorb: str
    chunk: int


class ObjectStore:
    """The bytes of all repositories, by hash; with `xet` also what hf_xet left in its local store."""

    def __init__(self, root: Path, xet: bool) -> None:
        self.objects, self.cas, self.xet = root.resolve() / "objects", root.resolve() / "cas", xet
        self.objects.mkdir(parents=True, exist_ok=True)
        self._sizes: dict[str, int] = {}
        self._shard_files: dict[str, ShardFile] = {}
        self._shards_read: set[Path] = set()

    def add(self, data: bytes) -> StoredFile:
        """Keep a regular file."""
        oid = git_oid(data)
        (self.objects / oid).write_bytes(data)
        return StoredFile(len(data), oid)

    def receive(self, sha256: str, chunks: Iterable[bytes]) -> None:
        """Keep an LFS object as it arrives; 400 where its bytes have another hash."""
        scratch, digest = self.objects / f"{sha256}.{threading.get_ident()}.part", hashlib.sha256()
        try:
            with scratch.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
            if digest.hexdigest() != sha256:
                raise RefusedError(400, f"the object's sha256 is {digest.hexdigest()}, not {sha256}")
            scratch.replace(self.objects / sha256)
        finally:
            scratch.unlink(missing_ok=True)

    def holds(self, sha256: str) -> bool:
        """Whether an LFS object has arrived over HTTP."""
        return (self.objects / sha256).exists()

    def large(self, sha256: str, size: int | None) -> StoredFile:
        """The tree's entry for an LFS or Xet object that has arrived; 400 where it has not."""
        xet_hash = self.xet_hash(sha256)
        if xet_hash is None and not self.holds(sha256):
            raise RefusedError(400, f"LFS pointer {sha256} points to an object that was never uploaded")
        size = size if size is not None else self._sizes.get(sha256) or (self.objects / sha256).stat().st_size
        self._sizes[sha256] = size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return StoredFile(size, git_oid(pointer), sha256, len(pointer), xet_hash)

    def xet_hash(self, sha256: str) -> str | None:
        """The Xet hash of a file that hf_xet stored, from the shards; None where it did not."""
        if self.xet and sha256 not in self._shard_files:
            for shard in set(self.cas.rglob("shards/*.mdb")) - self._shards_read:
                self._shard_files |= {file.sha256: file for file in read_shard(shard.read_bytes())}
                self._shards_read.add(shard)
        return self._shard_files[sha256].xet_hash if sha256 in self._shard_files else None

    def open(self, key: str) -> Path:
        """The file that holds an object; a Xet file is put together first, as the Hub does for clients without Xet."""
        path = self.objects / key
        xet_hash = self.xet_hash(key)
        if not path.exists() and xet_hash is not None:
            import hf_xet

            scratch = path.with_suffix(f".{threading.get_ident()}.part")
            with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{self.cas}") as group:
                group.start_download_file(hf_xet.XetFileInfo(xet_hash, self._sizes[key]), str(scratch))
            scratch.replace(path)
        if not path.exists():
            raise RefusedError(404, f"object {key} is missing", "EntryNotFound")
        return path

    def damage(self, file: StoredFile) -> None:
        """Invert a byte of a file wherever it is stored, in a Xet chunk too (hf_xet's local store does not notice)."""
        if self.xet_hash(file.key) is not None:
            in_xet = self._shard_files[file.key]
            xorb = next(self.cas.rglob(f"xorbs/default.{in_xet.xorb}"))
            invert(xorb, middle_of_chunk(xorb.read_bytes(), in_xet.chunk))
        if (self.objects / file.key).exists():
            invert(self.objects / file.key, file.size // 2)

    def lose(self, file: StoredFile) -> None:
        """Remove the bytes of a file (with Xet: of every file that shares its xorb); it stays listed."""
        if self.xet_hash(file.key) is not None:
            next(self.cas.rglob(f"xorbs/default.{self._shard_files[file.key].xorb}")).unlink()
        (self.objects / file.key).unlink(missing_ok=True)

    def xet_bytes(self) -> int:
        """Bytes of all xorbs in hf_xet's local store: what Xet uploads moved, deduplicated."""
        return sum(path.stat().st_size for path in self.cas.rglob("xorbs/default.*") if path.suffix != ".tagset")


def git_oid(data: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def read_shard(data: bytes) -> Iterator[ShardFile]:
    """Every file in a Xet shard that names its sha256.

    A shard opens with one record; a file has a header (hash, flags, number of segments), its segments (hash of the xorb, flags,
    bytes, first and last chunk), a verification entry per segment if flagged, and its metadata (sha256) if flagged. Hashes are
    written as four little-endian 64-bit words. Source: huggingface.co/docs/xet/shard.
    """
    at = SHARD_RECORD
    while at + SHARD_RECORD <= len(data) and data[at : at + 32] != SHARD_END:
        flags, segments = struct.unpack_from("<II", data, at + 32)
        metadata = at + SHARD_RECORD * (1 + segments * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_METADATA:
            segment = at + SHARD_RECORD
            (chunk,) = struct.unpack_from("<I", data, segment + 40)
            yield ShardFile(shard_hash(data, metadata), shard_hash(data, at), shard_hash(data, segment), chunk)
        at = metadata + (SHARD_RECORD if flags & HAS_METADATA else 0)


def shard_hash(data: bytes, at: int) -> str:
    """The hexadecimal form of the hash at an offset."""
    return b"".join(data[word : word + 8][::-1] for word in range(at, at + 32, 8)).hex()


def middle_of_chunk(xorb: bytes, chunk: int) -> int:
    """Where the middle of a chunk's bytes is in a xorb.

    Before each chunk stands a header: version (1 byte), stored length (3), compression (1), length (3).
    Source: huggingface.co/docs/xet/xorb.
    """
    at = 0
    for _ in range(chunk):
        at += CHUNK_HEADER + int.from_bytes(xorb[at + 1 : at + 4], "little")
    return at + CHUNK_HEADER + int.from_bytes(xorb[at + 1 : at + 4], "little") // 2


def invert(path: Path, at: int) -> None:
    """Invert one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.chmod(0o644)  # xorbs are written read-only
    path.write_bytes(data)


def check_path(path: str) -> None:
    """400 for the names that the Hub refuses in a commit."""
    if re.search(r"(^|/)(\.\.?|\.git|)(/|$)", path):
        raise RefusedError(400, f"invalid path {path!r}")
