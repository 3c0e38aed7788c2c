"""Listings: what is taken from them, and the names that no file may have."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from m3dt_agent.errors import HubError
from m3dt_agent.hub.snapshots import RemoteFile, Snapshot, is_commit_id, is_safe_name, require_commit_id

SHA, OID, SHA256 = "a1" * 20, "b2" * 20, "c3" * 32
PLAIN = {"rfilename": "bank.json", "size": 3, "blobId": OID}
LARGE = {
    "rfilename": "experts/000.safetensors",
    "size": 5,
    "blobId": OID,
    "lfs": {"sha256": SHA256, "size": 5, "pointerSize": 1},
}


def test_a_listing_becomes_records() -> None:
    snapshot = Snapshot.from_listing({"sha": SHA, "siblings": [PLAIN, LARGE], "tags": [], "cardData": {"x": 1}}, "here")
    assert snapshot.sha == SHA
    assert snapshot.files == {
        "bank.json": RemoteFile(3, OID, None),
        "experts/000.safetensors": RemoteFile(5, OID, SHA256),
    }
    assert [file.key for file in snapshot.files.values()] == [OID, SHA256]
    assert Snapshot.from_listing({"sha": SHA}, "here").listing() == "nothing"
    assert Snapshot.from_listing({"sha": "d4" * 32, "siblings": [PLAIN]}, "here").sha == "d4" * 32


@pytest.mark.parametrize("name", ["a", "a/b.c", ".gitattributes", "a..b/c", "...", "語/é.json", "a b", "-", "x" * 200])
def test_names_that_stay_inside(name: str) -> None:
    assert is_safe_name(name)


OUTSIDE = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/./b", "a\\b", "C:/a", "c:a"]


@pytest.mark.parametrize("name", [*OUTSIDE, "a\0", "a\n", "\x7f", "\u202ea", "x" * 256])
def test_names_that_do_not(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize("text", [SHA, SHA256])
def test_ids_of_commits(text: str) -> None:
    assert is_commit_id(text)
    assert require_commit_id(text, "here") == text


NO_IDS = ["", "main", SHA[:39], SHA + "a", SHA.upper(), SHA + "\n", "../" * 13 + "a", "٣" * 40, None, 7, [SHA]]


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_id(text: object) -> None:
    assert not is_commit_id(text)
    with pytest.raises(HubError, match="here: the Hub gives") as found:
        require_commit_id(text, "here")
    assert str(found.value).isprintable()


@pytest.mark.parametrize("siblings", ["x", 7, [7], [[]], [{}], [None]])
def test_siblings_of_another_shape(siblings: Any) -> None:
    with pytest.raises(HubError, match="here"):
        Snapshot.from_listing({"sha": SHA, "siblings": siblings}, "here")


def test_bytes_are_compared_with_what_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"hello")
    sha256, oid = hashlib.sha256(b"hello").hexdigest(), hashlib.sha1(b"blob 5\0hello").hexdigest()
    assert RemoteFile(5, OID, sha256).matches(file)
    assert RemoteFile(5, oid, None).matches(file)
    for other in (RemoteFile(6, OID, sha256), RemoteFile(5, OID, SHA256), RemoteFile(5, OID, None)):
        assert not other.matches(file)
