"""A Hub that lies: its ids of commits, ETags, headers and names lead elsewhere, and its files never end.

Every attempt ends in a named error or in the right bytes, and no byte outside the cache, the root and their scratch folders has
changed: the trees are compared before and after.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_server import Answer, Hub

from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import HubError, M3DTError
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.datasets import pull_datasets, push_datasets

REPO, DATA, ALICE = "alice/bank", "alice/demonstrations", "hf_alice"
TASKS = ("cheetah-vel-3", "reacher-easy")
LISTING = "GET /api/(models|datasets)/alice/[a-z]+(/revision/[^?]*)?[?]"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's files, in and around the places where a cache and a dataset root are."""
    home = tmp_path / "home"
    for name in ("keys/id_rsa", "notes.txt", "datasets/m3dt/notes.txt", "datasets/own.txt", "cache/own.txt", "id.lock"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"mine: {name}")
    shutil.copytree(home, tmp_path / "as-it-was")
    return home


def tree(folder: Path) -> dict[str, str | bytes]:
    """Everything below a folder: bytes of files, targets of links."""
    found: dict[str, str | bytes] = {}
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
            found[str(path.relative_to(folder))] = content
    return found


def outside(home: Path) -> dict[str, str | bytes]:
    """The part of the tree that no pull may change."""
    ours = (
        "cache/models--alice--bank",
        "cache/.locks/models--alice--bank",
        "cache/.locks/datasets--alice--demonstrations",
        "cache/CACHEDIR.TAG",
        "cache/datasets--alice--demonstrations",
        "datasets/.pull",
        "datasets/m3dt/cheetah-vel-3",
    )
    ours += ("datasets/m3dt/reacher-easy", "datasets/m3dt/namespace_metadata.json")
    return {name: content for name, content in tree(home).items() if not name.startswith(ours)}


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Answer], Answer]:
    """An answer whose JSON was changed."""

    def forge(answer: Answer) -> Answer:
        value = json.loads(answer.body)
        change(value)
        return dataclasses.replace(answer, body=json.dumps(value).encode())

    return forge


def with_headers(headers: Mapping[str, str]) -> Callable[[Answer], Answer]:
    return lambda answer: dataclasses.replace(answer, headers={**answer.headers, **headers})


def named(attempt: Callable[[], object]) -> M3DTError | None:
    """The named error of an attempt, None if it went well; any other is a failure."""
    found = None
    try:
        attempt()
    except M3DTError as error:
        found = error
    assert str(found).isprintable()
    return found


FORGED_IDS = [
    "../../../keys",
    "..",
    "../..",
    "../../home/keys",
    "/etc",
    "a" * 39,
    "A" * 40,
    "٣" * 40,
    "a" * 40 + "\n",
    "a" * 4000,
    "\x1b]0;x\x07",
    "",
    None,
    7,
    ["a" * 40],
]


@pytest.fixture
def pushed(lfs_hub: Hub, bank: ExpertBank, data: tuple[Path, TaskDatasets]) -> Hub:
    """A Hub that holds the bank and the datasets."""
    push_bank(bank, REPO, token=ALICE)
    push_datasets(data[0], DATA, token=ALICE)
    return lfs_hub


def pulls(home: Path) -> list[M3DTError | None]:
    """What a pull of the bank and one of the datasets end with."""
    return [
        named(lambda: pull_bank(REPO, cache_dir=home / "cache")),
        named(lambda: pull_datasets(DATA, home / "datasets", cache_dir=home / "cache", overwrite=True)),
    ]


def test_an_id_of_a_commit_is_never_a_path(pushed: Hub, home: Path) -> None:
    before = tree(home)
    for sha in FORGED_IDS:
        pushed.heal()
        pushed.forge(LISTING, edited(lambda answer, sha=sha: answer.update(sha=sha)))
        errors = pulls(home)
        assert tree(home) == before, sha
        for error in errors:
            assert isinstance(error, HubError), sha
            assert "id of a commit" in str(error), sha


def test_an_id_of_a_pushed_commit_and_of_a_tag_is_checked(lfs_hub: Hub, bank: ExpertBank, home: Path) -> None:
    lfs_hub.forge("POST .*/commit/", edited(lambda answer: answer.update(commitOid="../../x")), times=1)
    error = named(lambda: push_bank(bank, REPO, token=ALICE))
    assert "id of a commit" in str(error)
    assert not lfs_hub.count("revision/.*x")
    push_bank(bank, REPO, token=ALICE)
    lfs_hub.forge("GET .*/refs", edited(lambda answer: answer["tags"][0].update(targetCommit="../../x")))
    assert "id of a commit" in str(named(lambda: push_bank(bank, REPO, token=ALICE)))


FORGED_HEADERS = [
    {"ETag": '"../../../keys/id_rsa"', "X-Linked-Etag": '"../../../keys/id_rsa"'},
    {"ETag": '"../../../notes.txt"'},
    {"ETag": 'W/"/etc/passwd"', "X-Linked-Etag": ""},
    {"X-Repo-Commit": "../../../keys"},
    {"X-Repo-Commit": "../../../../home/datasets", "ETag": '"../../own.txt"'},
    {"X-Xet-Hash": "../../keys", "Link": '<file:///etc/passwd>; rel="xet-auth"'},
    {"X-Error-Code": "EntryNotFound", "Content-Disposition": 'attachment; filename="../../keys"'},
]


@pytest.mark.parametrize("damaged", [False, True], ids=["right bytes", "wrong bytes"])
def test_a_header_is_never_a_path(pushed: Hub, bank: ExpertBank, home: Path, damaged: bool) -> None:
    """With wrong bytes the download is tried a second time, which used to remove what the first had made."""
    before = outside(home)
    for headers in FORGED_HEADERS:
        pushed.heal()
        pushed.forge("(GET|HEAD) .*/resolve/|/_cdn/", with_headers(headers))
        if damaged:
            pushed.corrupt(".*", times=None)
        for folder in ("cache", "datasets"):
            shutil.rmtree(home / folder)
            shutil.copytree(home.parent / "as-it-was" / folder, home / folder)
        errors = pulls(home)
        assert outside(home) == before, headers
        if damaged:
            assert all("arrived damaged twice" in str(error) for error in errors), headers
            assert not list(home.rglob("*.incomplete"))
            assert not list(home.rglob("*.safetensors"))
        else:
            assert errors == [None, None], headers
            assert pull_bank(REPO, cache_dir=home / "cache", offline=True).bank.manifest == bank.manifest


def test_a_link_in_the_cache_is_never_followed_to_write_or_remove(lfs_hub: Hub, bank: ExpertBank, home: Path) -> None:
    """As an earlier version, or another program, may have left it."""
    sha = push_bank(bank, REPO, token=ALICE).sha
    folder = pull_bank(REPO, cache_dir=home / "cache").bank.path
    storage = folder.parents[1]
    blob = (folder / "backbone.safetensors").resolve()
    for victim, link in {"notes.txt": folder / "backbone.safetensors", "keys/id_rsa": folder / "bank.json"}.items():
        link.unlink()
        link.symlink_to(home / victim)
    (folder / "router.safetensors").resolve().unlink()
    blob.unlink()
    blob.symlink_to(home / "id.lock")
    before = outside(home)
    assert pull_bank(REPO, cache_dir=home / "cache").bank.manifest == bank.manifest
    assert outside(home) == before
    shutil.rmtree(storage / "blobs")
    shutil.rmtree(folder)
    (home / "elsewhere").mkdir()
    (storage / "blobs").symlink_to(home / "elsewhere")
    folder.parent.mkdir(exist_ok=True)
    before = tree(home)
    assert "leads out of the cache" in str(named(lambda: pull_bank(REPO, sha, cache_dir=home / "cache")))
    assert tree(home) == before


NAMES = ["../../keys/id_rsa", "/etc/passwd", "experts/../../../x", "a\\..\\x", "C:/x", "a//b", ".", "x/.."]
NAMES += ["a\0b", "a\nb", "\x1b[31mx"]


def test_a_listed_name_that_leads_elsewhere_is_refused_by_name(pushed: Hub, home: Path) -> None:
    before = tree(home)
    for name in NAMES:
        pushed.heal()

        def add(listing: dict[str, Any], name: str = name) -> None:
            listing["siblings"].append({**listing["siblings"][0], "rfilename": name})

        pushed.forge(LISTING, edited(add))
        errors = pulls(home)
        assert tree(home) == before, name
        for error in errors:
            assert isinstance(error, HubError), name
            assert repr(name) in str(error)


FORGED_FILES: list[dict[str, Any]] = [
    {"size": -1},
    {"size": 1.5},
    {"size": 10**30},
    {"size": None},
    {"blobId": "../../x"},
    {"blobId": None},
    {"lfs": {"sha256": "../" * 20, "size": 3}},
    {"lfs": {"sha256": 7}},
    {"lfs": []},
    {"rfilename": 7},
    {"rfilename": None},
]


def test_a_listing_that_cannot_be(pushed: Hub, home: Path) -> None:
    before = tree(home)
    for change in FORGED_FILES:
        pushed.heal()
        pushed.forge(LISTING, edited(lambda answer, change=change: answer["siblings"][0].update(change)))
        errors = pulls(home)
        assert tree(home) == before, change
        assert all(isinstance(error, HubError) for error in errors), change


BODIES = [b"", b"[]", b"[" * 100_000, b'{"sha": NaN}', b'{"a": 1, "a": 2}', b"\xff", b'{"sha": 1e999}', b'"x"']


def test_an_answer_that_is_no_listing(pushed: Hub, bank: ExpertBank, home: Path) -> None:
    for body in BODIES:
        pushed.heal()
        pushed.forge(f"{LISTING}|GET .*/refs", lambda answer, body=body: dataclasses.replace(answer, body=body))
        for error in (*pulls(home), named(lambda: push_bank(bank, REPO, token=ALICE))):
            assert isinstance(error, HubError), body[:20]
            assert "alice/" in str(error)


# -- time and size -------------------------------------------------------------------------------------------------------------


class Endless:
    """A body that goes on until the client leaves; it counts what it has sent."""

    def __init__(self, piece: bytes, every_s: float = 0.0, most: int = 2 << 30) -> None:
        self.piece, self.every_s, self.most, self.sent = piece, every_s, most, 0

    def __iter__(self) -> Iterator[bytes]:
        while self.sent < self.most:
            self.sent += len(self.piece)
            yield self.piece
            time.sleep(self.every_s)

    def forge(self, answer: Answer) -> Answer:
        kept = {name: value for name, value in answer.headers.items() if name != "Location"}
        return Answer(200, kept, endless=self)


@pytest.mark.parametrize("name", ["bank.json", "backbone.safetensors"])
def test_a_download_stops_at_the_listed_size(lfs_hub: Hub, bank: ExpertBank, home: Path, name: str) -> None:
    push_bank(bank, REPO, token=ALICE)
    body = Endless(b"\0" * 100_000)
    lfs_hub.forge(f"GET .*/resolve/.*{name}", body.forge)
    error = named(lambda: pull_bank(REPO, cache_dir=home / "cache"))
    assert f"{name} arrived damaged twice: more bytes are sent than the" in str(error)
    assert body.sent < 30 << 20  # of 2 GB: what fits into the buffers of two connections
    assert max((len(content) for content in tree(home / "cache").values()), default=0) <= 100_000


def test_an_announced_size_is_compared_before_anything_is_read(lfs_hub: Hub, bank: ExpertBank, home: Path) -> None:
    push_bank(bank, REPO, token=ALICE)
    lfs_hub.forge("GET .*/resolve/.*bank.json", lambda answer: Answer(200, body=b"\0" * 5_000_000))
    assert "more bytes are sent" in str(named(lambda: pull_bank(REPO, cache_dir=home / "cache")))


def test_a_listing_without_an_end(lfs_hub: Hub, bank: ExpertBank, home: Path) -> None:
    push_bank(bank, REPO, token=ALICE)
    body = Endless(b" " * 100_000)
    lfs_hub.forge(LISTING, body.forge)
    assert "is longer than the 16 MB that are read" in str(named(lambda: pull_bank(REPO, cache_dir=home / "cache")))
    assert body.sent < 60 << 20


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3DT_HUB_TIMEOUT", "0.1")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("where", [LISTING, "GET .*/resolve/.*bank.json", "GET .*/resolve/.*backbone"])
def test_a_byte_now_and_then_is_not_enough(lfs_hub: Hub, bank: ExpertBank, home: Path, where: str) -> None:
    push_bank(bank, REPO, token=ALICE)
    lfs_hub.forge(where, Endless(b" ", every_s=0.05, most=400).forge)
    began = time.monotonic()
    error = named(lambda: pull_bank(REPO, cache_dir=home / "cache"))
    assert "fewer than 1,000 bytes a second" in str(error)
    assert "M3DT_HUB_MIN_SPEED" in str(error)
    assert time.monotonic() - began < 8


@pytest.mark.usefixtures("impatient")
def test_a_slow_connection_is_allowed_for(lfs_hub: Hub, bank: ExpertBank, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_bank(bank, REPO, token=ALICE)
    content = lfs_hub.read("models", REPO, "bank.json")
    pieces = [content[i : i + 100] for i in range(0, len(content), 100)]

    def slowly(answer: Answer) -> Answer:
        return Answer(200, endless=(time.sleep(0.05) or piece for piece in pieces))

    lfs_hub.forge("GET .*/resolve/.*bank.json", slowly)
    monkeypatch.setenv("M3DT_HUB_MIN_SPEED", "0")
    assert pull_bank(REPO, cache_dir=home / "cache").bank.manifest == bank.manifest


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("step", ["GET /api/models/alice/bank[?]", "GET .*/refs", "POST .*/create", "POST .*/tag/"])
def test_a_server_that_does_not_answer(lfs_hub: Hub, bank: ExpertBank, step: str) -> None:
    """For a minute: it is asked as often as after any lost connection, and then given up."""
    awake = threading.Event()
    lfs_hub.before(step, lambda: awake.wait(30), times=None)
    began = time.monotonic()
    try:
        error = named(lambda: push_bank(bank, REPO, token=ALICE))
    finally:
        awake.set()
    assert isinstance(error, HubError)
    assert time.monotonic() - began < 10


def test_the_settings_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("M3DT_HUB_TIMEOUT", "0"), ("M3DT_HUB_TIMEOUT", "nan"), ("M3DT_HUB_MIN_SPEED", "fast")):
        with monkeypatch.context() as patched:
            patched.setenv(name, text)
            with pytest.raises(M3DTError, match=f"{name} must be a number.*{text}"):
                HubRepo(REPO, "model")
