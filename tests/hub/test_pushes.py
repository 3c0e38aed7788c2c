"""A series of commits: the repository is made once, what is there needs no commit, and a head that keeps moving is given up."""

from __future__ import annotations

import pytest
from hub_server import Hub
from huggingface_hub import CommitOperationAdd, HfApi

from m3dt_agent.errors import HubConflictError, HubError
from m3dt_agent.hub.client import COMMIT_ATTEMPTS, HubRepo
from m3dt_agent.hub.pushes import Push
from m3dt_agent.hub.snapshots import Change, Snapshot

REPO, ALICE = "alice/bank", "hf_alice"


def adds(name: str, content: bytes) -> Change:
    return Change(f"add {name}", [CommitOperationAdd(name, content)])


def test_a_repository_is_made_once_and_private_if_asked(lfs_hub: Hub) -> None:
    repo = HubRepo(REPO, "model", token=ALICE)
    assert Push(repo, private=True).commits == 0
    assert lfs_hub.repos["models", REPO].private
    Push(repo, private=False)
    assert lfs_hub.count("POST /api/repos/create") == 1
    assert lfs_hub.repos["models", REPO].private


def test_commits_are_counted_and_empty_ones_not_made(lfs_hub: Hub) -> None:
    push = Push(HubRepo(REPO, "model", token=ALICE), private=None)
    heads: list[Snapshot] = []

    def make(head: Snapshot) -> Change:
        heads.append(head)
        return Change("", []) if "a" in head.files else adds("a", b"1")

    assert push.commit(make)
    assert not push.commit(make)
    assert push.commit(lambda _: adds("b", b"2"))
    assert push.commits == 2
    assert [sorted(set(head.files) - {".gitattributes"}) for head in heads] == [[], ["a"]]
    assert push.head.sha == lfs_hub.repos["models", REPO].sha("main")


def test_a_head_that_moves_is_looked_at_again_and_at_last_given_up(lfs_hub: Hub) -> None:
    push = Push(HubRepo(REPO, "model", token=ALICE), private=None)
    made = iter(range(1_000))

    def meanwhile() -> None:
        lfs_hub.plant("models", REPO, f"other-{next(made)}", b"x")

    lfs_hub.before("POST .*/commit/", meanwhile, times=2)
    assert push.commit(lambda _: adds("a", b"1"))
    assert {"a", "other-0", "other-1"} <= set(push.head.files)
    lfs_hub.before("POST .*/commit/", meanwhile, times=None)
    lfs_hub.clear()
    with pytest.raises(HubConflictError, match=f"gave up after {COMMIT_ATTEMPTS} tries"):
        push.commit(lambda _: adds("b", b"1"))
    assert lfs_hub.count("POST .*/commit/") == COMMIT_ATTEMPTS


def test_who_may_not_write_is_told(lfs_hub: Hub) -> None:
    Push(HubRepo(REPO, "model", token=ALICE), private=None)
    with pytest.raises(HubError, match="HTTP 403, not allowed with the token given"):
        Push(HubRepo(REPO, "model", token="hf_bob"), private=None).commit(lambda _: adds("a", b"1"))
    with pytest.raises(HubError, match="no token was given"):
        Push(HubRepo("alice/other", "model"), private=None)
    assert not HfApi(endpoint=lfs_hub.endpoint).list_repo_refs(REPO).tags
