"""What a repository on the Hub says about the bank it holds.

`bank.json` lists every file with its sha256. The Hub lists files too, with a sha256 for those in LFS or Xet, so a damaged or
incomplete repository is often recognised before anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.errors import BankError
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.snapshots import RemoteFile, Snapshot

MANIFEST = "bank.json"


def remote_manifest(repo: HubRepo, snapshot: Snapshot) -> Manifest | None:
    """The manifest of the bank at `snapshot`, or None if the repository has none.

    Raises:
        BankError: it is damaged. HubError: it cannot be downloaded.
    """
    if MANIFEST not in snapshot.files:
        return None
    text = repo.read(snapshot, MANIFEST)
    return Manifest.from_json(text, Path(f"{repo.repo_id}@{snapshot.sha[:12]}", MANIFEST))


def require_listed(repo: HubRepo, snapshot: Snapshot, files: Mapping[str, FileRecord]) -> None:
    """Checks that the repository holds `files`, as far as the Hub's listing tells; nothing is downloaded.

    Raises:
        BankError: files are missing or differ.
    """
    where = f"{repo} at {snapshot.sha[:12]}"
    if missing := sorted(set(files) - set(snapshot.files)):
        raise BankError(f"{where} is damaged: its {MANIFEST} lists {', '.join(missing)}, which it does not hold")
    if wrong := [name for name, record in files.items() if not _may_be(snapshot.files[name], record)]:
        raise BankError(f"{where} is damaged: {', '.join(sorted(wrong))} is not what its {MANIFEST} lists")


def is_there(name: str, record: FileRecord, head: Snapshot, there: Manifest | None) -> bool:
    """Whether `head`, whose manifest is `there`, holds this very file, so that it need not be sent."""
    remote = head.files.get(name)
    if remote is None or there is None or not _may_be(remote, record):
        return False
    return remote.sha256 is not None or there.files.get(name) == record


def _may_be(remote: RemoteFile, record: FileRecord) -> bool:
    return remote.size == record.bytes and remote.sha256 in (None, record.sha256)
