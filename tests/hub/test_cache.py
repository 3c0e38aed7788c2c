"""The local cache: read where it may only be read, refused by name where it cannot be used, and in huggingface_hub's layout."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import hf_hub_download, scan_cache_dir

from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import ConfigError, HubError, M3DTError, PathError
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.hub.cache import RepoCache
from m3dt_agent.hub.snapshots import RemoteFile

REPO, ALICE, SHA = "alice/bank", "hf_alice", "0123456789abcdef0123456789abcdef01234567"
EMPTY = RemoteFile(0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", None)  # git's hash of nothing


@pytest.fixture
def cache(tmp_path: Path) -> RepoCache:
    return RepoCache(REPO, "model", tmp_path / "cache")


def storage(cache: RepoCache) -> Path:
    return cache.folder(SHA).parents[1]


def test_huggingface_hub_reads_what_is_cached_here_and_the_other_way_round(
    lfs_hub: Hub, bank: ExpertBank, tmp_path: Path
) -> None:
    sha = push_bank(bank, REPO, token=ALICE).sha
    folder = pull_bank(REPO, cache_dir=tmp_path / "ours").bank.path
    scanned = scan_cache_dir(tmp_path / "ours")
    assert not scanned.warnings
    assert [(repo.repo_id, set(repo.refs)) for repo in scanned.repos] == [(REPO, {"main"})]
    lfs_hub.clear()
    found = hf_hub_download(REPO, "bank.json", revision=sha, cache_dir=tmp_path / "ours", local_files_only=True)
    assert Path(found) == folder / "bank.json"
    for name in (*bank.manifest.files, "bank.json"):
        hf_hub_download(REPO, name, revision=sha, cache_dir=tmp_path / "theirs", endpoint=lfs_hub.endpoint)
    lfs_hub.clear()
    assert pull_bank(REPO, sha, cache_dir=tmp_path / "theirs").bank.manifest == bank.manifest
    assert not lfs_hub.requests


def test_what_is_the_same_in_two_commits_is_kept_once(lfs_hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    push_bank(bank, REPO, token=ALICE)
    pull_bank(REPO, cache_dir=tmp_path)
    lfs_hub.plant("models", REPO, "README.md", b"# another\n")
    lfs_hub.clear()
    assert pull_bank(REPO, cache_dir=tmp_path).bank.manifest == bank.manifest
    assert not lfs_hub.count("resolve")


READER = """
import os, sys
from m3dt_agent.hub.banks import pull_bank
cache, endpoint, sha, tag = sys.argv[1:]
pull_bank("alice/bank", cache_dir=cache + "-of-root", endpoint=endpoint)  # imports everything, which that user may not read
os.setgid(65534), os.setuid(65534)
assert not os.access(cache, os.W_OK)
for revision, offline in ((None, False), (sha, False), ("main", True), (tag, False)):
    print(pull_bank("alice/bank", revision, cache_dir=cache, endpoint=endpoint, offline=offline).sha)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a cache of somebody else's: only root can be another user")
def test_a_cache_that_may_only_be_read_works_if_it_holds_everything(lfs_hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    pushed = push_bank(bank, REPO, token=ALICE)
    pull_bank(REPO, cache_dir=tmp_path / "cache")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    command = [sys.executable, "-c", READER, str(tmp_path / "cache"), lfs_hub.endpoint, str(pushed.sha), pushed.tag]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"HOME": "/nonexistent"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [pushed.sha] * 4


def a_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "in-the-way").touch()


def a_loop(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


BLOCKS = [
    (a_file, "."),
    (a_loop, "."),
    (a_file, "models--alice--bank"),
    (a_loop, "models--alice--bank"),
    (a_file, "models--alice--bank/blobs"),
    (a_loop, "models--alice--bank/blobs"),
    (a_file, "models--alice--bank/snapshots"),
    (a_loop, "models--alice--bank/snapshots"),
    (a_file, "models--alice--bank/refs"),
    (a_loop, "models--alice--bank/refs"),
    (a_folder, "models--alice--bank/refs/main"),
    (a_loop, "models--alice--bank/refs/main"),
    (a_pipe, "models--alice--bank/refs/main"),
]


@pytest.mark.parametrize(("block", "where"), BLOCKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_cache_that_cannot_be_used_is_a_named_error(
    lfs_hub: Hub, bank: ExpertBank, tmp_path: Path, block: Callable[[Path], None], where: str
) -> None:
    push_bank(bank, REPO, token=ALICE)
    block(tmp_path / "cache" / where)
    for offline in (False, True):
        with pytest.raises((PathError, HubError)) as found:
            pull_bank(REPO, cache_dir=tmp_path / "cache", offline=offline)
        assert "cache" in str(found.value)


def test_a_snapshot_with_a_folder_in_the_place_of_a_file(lfs_hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    sha = push_bank(bank, REPO, token=ALICE).sha
    a_folder(RepoCache(REPO, "model", tmp_path).file(str(sha), "bank.json"))
    with pytest.raises(PathError, match=r"bank\.json cannot be used"):
        pull_bank(REPO, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["../main", "a/../../b", "/etc/passwd", "a\\b", "a\nb", "\0", "a//b", ".", "x" * 300])
def test_a_name_that_no_branch_can_have(cache: RepoCache, name: str) -> None:
    for attempt in (lambda: cache.sha_of(name), lambda: cache.remember(name, SHA)):
        with pytest.raises(ConfigError, match="revision must be a branch, tag or sha"):
            attempt()
    assert not cache.path.exists()


@pytest.mark.parametrize("noted", ["../../x", "", "main", "0" * 39, "x" * 1_000_000, "\xff"])
def test_a_note_that_is_no_id_counts_as_none(cache: RepoCache, noted: str) -> None:
    file = storage(cache) / "refs" / "main"
    file.parent.mkdir(parents=True)
    file.write_bytes(noted.encode("latin-1"))
    assert cache.sha_of(None) is None
    cache.remember(None, SHA)
    assert cache.sha_of("main") == SHA


def test_what_is_no_id_and_no_name_makes_no_path(cache: RepoCache) -> None:
    for sha in ("..", "../x", "main", "", "0" * 41):
        with pytest.raises(HubError, match="is not the id of a commit"):
            cache.folder(sha)
    for name in ("../x", "/x", "a\0", "a/../b"):
        with pytest.raises(HubError, match="is no name of a file in a repository"):
            cache.file(SHA, name)


def test_a_file_that_could_not_be_brought_leaves_nothing(cache: RepoCache) -> None:
    def bring(target: Path) -> None:
        target.write_bytes(b"half")
        raise HubError("cut")

    with pytest.raises(HubError, match="cut"):
        cache.add(SHA, "a/b.json", EMPTY, bring)
    assert not [path for path in storage(cache).rglob("*") if path.is_file()]
    cache.add(SHA, "a/b.json", EMPTY, Path.touch)
    assert os.readlink(cache.file(SHA, "a/b.json")) == f"../../../blobs/{EMPTY.key}"
    assert cache.has(SHA, "a/b.json", EMPTY)
    assert cache.has("f" * 40, "other.json", EMPTY)  # another commit, the same bytes


def test_what_killed_downloads_have_left_goes_after_a_day(cache: RepoCache) -> None:
    blobs = storage(cache) / "blobs"
    blobs.mkdir(parents=True)
    for name, age in {"old.incomplete": 90_000, "young.incomplete": 3_600, "old-and-whole": 90_000}.items():
        (blobs / name).write_bytes(b"half")
        os.utime(blobs / name, (time.time() - age, time.time() - age))
    cache.add(SHA, "b.json", EMPTY, Path.touch)
    assert {path.name for path in blobs.iterdir()} == {"young.incomplete", "old-and-whole", EMPTY.key}


def test_a_system_without_links_gets_copies(cache: RepoCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1314, "a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    listed = RemoteFile(5, "", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    cache.add(SHA, "hello", listed, lambda target: target.write_bytes(b"hello"))
    assert not cache.file(SHA, "hello").is_symlink()
    assert cache.file(SHA, "hello").read_bytes() == b"hello"


def test_a_home_folder_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RepoCache(REPO, "model", "~/hub").path == tmp_path / "hub"
    with pytest.raises(M3DTError, match="no path may hold"):
        RepoCache(REPO, "model", "a\0b")
