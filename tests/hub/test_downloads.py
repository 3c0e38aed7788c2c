"""A file on its way: continued after a cut, begun anew where the server wants that, and never other bytes than those listed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub_server import Answer, Hub
from huggingface_hub import HfApi

from m3dt_agent.hub import downloads
from m3dt_agent.hub.downloads import DamagedError, download
from m3dt_agent.hub.failures import ATTEMPTS
from m3dt_agent.hub.snapshots import RemoteFile
from m3dt_agent.hub.transport import Patience, Transport

CONTENT = np.random.default_rng(0).bytes(3_000_000)
LISTED = RemoteFile(len(CONTENT), "0" * 40, hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def fetch(lfs_hub: Hub, tmp_path: Path) -> Callable[..., bytes]:
    """Downloads the file at `CONTENT`'s address, and returns the bytes that are then on the disk."""
    api = HfApi(endpoint=lfs_hub.endpoint, token="hf_alice")
    api.create_repo("alice/bank")
    api.upload_file(path_or_fileobj=CONTENT, path_in_repo="large.bin", repo_id="alice/bank")
    lfs_hub.clear()
    transport = Transport(lfs_hub.endpoint, None, Patience())

    def fetch(listed: RemoteFile = LISTED) -> bytes:
        target = tmp_path / "target"
        target.unlink(missing_ok=True)
        download(transport, f"{lfs_hub.endpoint}/alice/bank/resolve/main/large.bin", listed, target)
        return target.read_bytes()

    return fetch


def test_a_download_goes_on_where_it_was_cut(lfs_hub: Hub, fetch: Callable[..., bytes]) -> None:
    for after in (1_000, 500_000, 2_000_000):
        lfs_hub.cut("large.bin", after)
    assert fetch() == CONTENT
    assert lfs_hub.bytes_out("_cdn") < len(CONTENT) + 1_000  # nothing came twice
    ranges = [request.headers.get("range") for request in lfs_hub.seen("_cdn")]
    assert ranges[0] is None
    assert all(str(asked).startswith("bytes=") for asked in ranges[1:])


def test_tries_are_counted_anew_while_much_arrives(
    lfs_hub: Hub, fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_PROGRESS", 100_000)
    lfs_hub.cut("large.bin", 300_000, times=8)
    assert fetch() == CONTENT
    lfs_hub.cut("large.bin", 1_000, times=ATTEMPTS - 1)
    assert fetch() == CONTENT
    lfs_hub.cut("large.bin", 1_000, times=ATTEMPTS)
    with pytest.raises(Exception, match="peer closed connection"):
        fetch()


def whole(answer: Answer) -> Answer:
    """All of the file, whatever part was asked for."""
    part = answer.part and dataclasses.replace(answer.part, first=0, length=answer.part.size)
    return dataclasses.replace(answer, status=200, part=part)


def test_a_server_that_begins_anew(lfs_hub: Hub, fetch: Callable[..., bytes]) -> None:
    lfs_hub.cut("large.bin", 1_000)
    lfs_hub.forge("_cdn", lambda answer: answer, times=1)
    lfs_hub.forge("_cdn", whole)
    assert fetch() == CONTENT


@pytest.mark.parametrize("said", ["bytes 5-9/10", "bytes 999999-3000000/3000000", "bytes */3000000", "", "lines 1000-"])
def test_another_part_than_the_one_asked_for(lfs_hub: Hub, fetch: Callable[..., bytes], said: str) -> None:
    lfs_hub.cut("large.bin", 1_000)
    lfs_hub.forge("_cdn", lambda answer: answer, times=1)

    def other(answer: Answer) -> Answer:
        return dataclasses.replace(answer, headers={**answer.headers, "Content-Range": said})

    lfs_hub.forge("_cdn", other)
    with pytest.raises(Exception, match=r"the part from byte 1,000 was asked for|without saying which"):
        fetch()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (RemoteFile(len(CONTENT) - 1, "0" * 40, LISTED.sha256), "more bytes are sent than the 2,999,999 that are listed"),
        (RemoteFile(len(CONTENT) + 1, "0" * 40, LISTED.sha256), "3,000,000 bytes arrived of the 3,000,001 that are listed"),
        (RemoteFile(len(CONTENT), "0" * 40, "0" * 64), "another hash"),
        (RemoteFile(len(CONTENT), "0" * 40, None), "another hash"),
        (RemoteFile(0, "0" * 40, None), "more bytes are sent than the 0"),
    ],
)
def test_other_bytes_than_those_listed(fetch: Callable[..., bytes], listed: RemoteFile, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        fetch(listed)


def test_git_s_own_hash_serves_as_well(fetch: Callable[..., bytes]) -> None:
    oid = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    assert fetch(RemoteFile(len(CONTENT), oid, None)) == CONTENT


def test_progress_is_told_and_taken_back(lfs_hub: Hub, fetch: Callable[..., bytes], tmp_path: Path) -> None:
    told: list[int] = []
    lfs_hub.cut("large.bin", 2_000_000)
    lfs_hub.forge("_cdn", lambda answer: answer, times=1)
    lfs_hub.forge("_cdn", whole)
    transport = Transport(lfs_hub.endpoint, None, Patience())
    download(transport, f"{lfs_hub.endpoint}/alice/bank/resolve/main/large.bin", LISTED, tmp_path / "told", told.append)
    assert sum(told) == len(CONTENT)
    assert -2_000_000 in told


def test_nothing_that_is_there_is_overwritten(fetch: Callable[..., bytes], lfs_hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    transport = Transport(lfs_hub.endpoint, None, Patience())
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            download(transport, f"{lfs_hub.endpoint}/alice/bank/resolve/main/large.bin", LISTED, tmp_path / name)
    assert (tmp_path / "there").read_text() == "mine"
