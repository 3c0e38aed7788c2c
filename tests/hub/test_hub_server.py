"""The tests' own Hub, held to what the real huggingface_hub client makes of it, over LFS and over Xet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from hub_server import Hub
from hub_server.cards import validate_card
from hub_server.store import RefusedError, check_path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "alice/bank"
CARD = b"---\nlicense: apache-2.0\nlibrary_name: m3dt-agent\ntags: [mixture-of-experts]\n---\n# A bank\n"


def noise(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n)


FILES = {"bank.json": b"{}", "experts/000.safetensors": noise(300_000), "README.md": CARD}


def user(hub: Hub, token: str | None = "hf_alice") -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token or False)


def push(hub: Hub, files: dict[str, bytes] = FILES, parent: str | None = None, kind: str = "model") -> str:
    api = user(hub)
    api.create_repo(REPO, repo_type=kind, exist_ok=True)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(REPO, operations, commit_message="push", parent_commit=parent, repo_type=kind).oid


def contents(folder: str | Path) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_committed_is_what_a_tag_serves(hub: Hub, kind: str) -> None:
    first = push(hub, kind=kind)
    user(hub).create_tag(REPO, tag="stage-backbone", revision=first, repo_type=kind)
    push(hub, {"bank.json": b"another"}, kind=kind)
    folder = user(hub).snapshot_download(REPO, revision="stage-backbone", repo_type=kind)
    assert Path(folder).name == first
    assert contents(folder) == FILES
    assert hub.read(f"{kind}s", REPO, "experts/000.safetensors", first) == FILES["experts/000.safetensors"]
    assert hub.read(f"{kind}s", REPO, "bank.json") == b"another"


def test_each_transport_is_the_one_it_says(hub: Hub) -> None:
    push(hub)
    user(hub).snapshot_download(REPO)
    over_http = hub.count("PUT /_lfs"), hub.count("GET /_cdn"), hub.count("xet-(read|write)-token")
    assert over_http == ((0, 0, 2) if hub.store.xet else (1, 1, 0))
    assert (hub.xet_bytes() > 300_000) == hub.store.xet


def test_the_token_never_leaves_the_origin(hub: Hub) -> None:
    push(hub)
    user(hub).snapshot_download(REPO)
    assert {r.headers["host"].split(":")[0] for r in hub.seen()} == (
        {"127.0.0.1"} if hub.store.xet else {"127.0.0.1", "localhost"}
    )
    assert not [r.line for r in hub.seen() if "localhost" in r.headers["host"] and "authorization" in r.headers]
    assert all(r.headers["authorization"] == "Bearer hf_alice" for r in hub.seen(" /api/models"))


def test_storage_refuses_a_token_as_s3_does(lfs_hub: Hub) -> None:
    push(lfs_hub)
    key = hashlib.sha256(FILES["experts/000.safetensors"]).hexdigest()
    assert httpx2.get(f"{lfs_hub.storage}/_cdn/{key}").content == FILES["experts/000.safetensors"]
    assert httpx2.get(f"{lfs_hub.storage}/_cdn/{key}", headers={"Authorization": "Bearer hf_alice"}).status_code == 400


def test_only_what_changed_travels(hub: Hub) -> None:
    push(hub)
    changed = bytearray(FILES["experts/000.safetensors"])
    changed[150_000] ^= 1
    hub.clear()
    stored = hub.xet_bytes()
    push(hub, FILES | {"experts/001.safetensors": bytes(changed)})
    if hub.store.xet:
        assert 0 < hub.xet_bytes() - stored < 200_000  # one chunk of up to 128 KiB
    else:
        assert hub.bytes_in("PUT /_lfs") == 300_000
    assert len(list(hub.repos["models", REPO].history("main"))) == 3
    push(hub)
    assert len(list(hub.repos["models", REPO].history("main"))) == 3  # nothing new: no commit


def test_files_and_folders_are_deleted(hub: Hub) -> None:
    push(hub, FILES | {"experts/001.safetensors": noise(1000), "old.json": b"1"})
    deletions = [CommitOperationDelete("old.json"), CommitOperationDelete("experts/", is_folder=True)]
    user(hub).create_commit(REPO, deletions, commit_message="delete")
    assert user(hub).list_repo_files(REPO) == [".gitattributes", "README.md", "bank.json"]
    with pytest.raises(RemoteEntryNotFoundError):
        user(hub).create_commit(REPO, [CommitOperationDelete("old.json")], commit_message="again")


def test_a_stale_parent_is_refused(hub: Hub) -> None:
    first = push(hub)
    push(hub, {"bank.json": b"2"}, parent=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        push(hub, {"bank.json": b"3"}, parent=first)
    assert error.value.response.status_code == 412
    assert hub.read("models", REPO, "bank.json") == b"2"


def test_of_many_commits_on_one_parent_one_is_made(lfs_hub: Hub) -> None:
    first = push(lfs_hub)

    def status(i: int) -> int:
        try:
            push(lfs_hub, {"bank.json": b"%d" % i}, parent=first)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(status, range(16))) == [200] + [412] * 15


def test_tags_branches_and_history(lfs_hub: Hub) -> None:
    first, api = push(lfs_hub), user(lfs_hub)
    api.create_tag(REPO, tag="stage-experts-3", revision=first)
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.create_tag(REPO, tag="stage-experts-3")
    api.create_branch(REPO, branch="mine", revision=first)
    second = push(lfs_hub, {"bank.json": b"2"})
    refs = api.list_repo_refs(REPO)
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"stage-experts-3": first}
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": second, "mine": first}
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:2] == [second, first]
    assert api.model_info(REPO, revision="refs/tags/stage-experts-3").sha == first
    api.delete_tag(REPO, tag="stage-experts-3")
    api.delete_branch(REPO, branch="mine")
    for revision in ("stage-experts-3", "mine", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=revision)


def test_listing_shows_folders_hashes_and_pages(lfs_hub: Hub) -> None:
    push(lfs_hub)
    entries = {entry.path: entry for entry in user(lfs_hub).list_repo_tree(REPO)}
    assert sorted(entries) == [".gitattributes", "README.md", "bank.json", "experts"]
    inside = next(iter(user(lfs_hub).list_repo_tree(REPO, "experts")))
    assert inside.lfs.sha256 == hashlib.sha256(FILES["experts/000.safetensors"]).hexdigest()
    assert [info.path for info in user(lfs_hub).get_paths_info(REPO, ["bank.json", "none"])] == ["bank.json"]
    push(lfs_hub, {f"many/{i:04}.json": b"%d" % i for i in range(1_200)})
    lfs_hub.clear()
    assert len(list(user(lfs_hub).list_repo_tree(REPO, "many"))) == 1_200
    assert lfs_hub.count("GET .*/tree/") == 2


def test_repositories_are_found_by_author_name_and_tag(lfs_hub: Hub) -> None:
    push(lfs_hub)
    user(lfs_hub, "hf_bob").create_repo("bob/other")
    user(lfs_hub).create_repo("alice/private", private=True)
    assert [model.id for model in user(lfs_hub, None).list_models()] == [REPO, "bob/other"]
    assert [model.id for model in user(lfs_hub).list_models(author="alice")] == [REPO, "alice/private"]
    assert [model.id for model in user(lfs_hub).list_models(filter=["m3dt-agent", "mixture-of-experts"])] == [REPO]
    assert list(user(lfs_hub).list_datasets()) == []


def test_a_private_repository_is_there_for_those_who_may(hub: Hub) -> None:
    user(hub).create_repo(REPO, private=True)
    push(hub)
    for token in ("hf_bob", None):
        with pytest.raises(RepositoryNotFoundError):
            user(hub, token).snapshot_download(REPO)
    hub.grant("models", REPO, "bob")
    assert contents(user(hub, "hf_bob").snapshot_download(REPO)) == FILES


def test_a_gated_repository_shows_itself_but_not_its_files(hub: Hub) -> None:
    sha = push(hub)
    hub.gate("models", REPO)
    assert user(hub, "hf_bob").model_info(REPO).gated == "manual"
    for token, status in (("hf_bob", 403), (None, 401)):
        with pytest.raises(GatedRepoError) as error:
            user(hub, token).hf_hub_download(REPO, "bank.json", revision=sha)
        assert error.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            user(hub, token).snapshot_download(REPO, revision=sha)
        with pytest.raises(GatedRepoError):
            user(hub, token).auth_check(REPO)
    assert contents(user(hub).snapshot_download(REPO, revision=sha)) == FILES


def test_who_may_not_is_told(lfs_hub: Hub) -> None:
    push(lfs_hub)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        user(lfs_hub, "hf_stolen").model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        user(lfs_hub, "hf_bob").upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO)
    with pytest.raises(HfHubHTTPError, match="under the namespace 'alice'"):
        user(lfs_hub, "hf_bob").create_repo("alice/mine")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        user(lfs_hub, "hf_bob").delete_repo(REPO)
    assert user(lfs_hub, "hf_bob").whoami()["name"] == "bob"
    user(lfs_hub).delete_repo(REPO)
    assert not user(lfs_hub).repo_exists(REPO)


def test_a_client_without_xet_reads_what_xet_stored(start_hub: Callable[[bool], Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = start_hub(True)
    push(hub)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert contents(user(hub).snapshot_download(REPO)) == FILES
    assert hub.bytes_out("GET /_cdn") == 300_000


def test_failures_come_as_often_as_asked_and_are_retried(hub: Hub, waits: list[float]) -> None:
    hub.fail("/preupload/", 503)
    hub.fail("/preupload/", 429, headers={"Retry-After": "7"})
    push(hub)
    assert waits == [1, 8]
    hub.clear()
    hub.fail("/preupload/", 500, times=None)
    with pytest.raises(HfHubHTTPError, match="500 Internal Server Error"):
        push(hub, {"bank.json": b"2"})
    assert [r.status for r in hub.seen("/preupload/")] == [500] * 6
    hub.heal()
    push(hub, {"bank.json": b"2"})
    hub.fail("/refs", 401, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(RepositoryNotFoundError):
        user(hub).list_repo_refs(REPO)


def test_failures_are_counted_across_threads(lfs_hub: Hub) -> None:
    lfs_hub.fail("whoami", 500, times=5)

    def status(_: int) -> int:
        return httpx2.get(f"{lfs_hub.endpoint}/api/whoami-v2", headers={"Authorization": "Bearer hf_bob"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(status, range(20))) == [200] * 15 + [500] * 5
    assert lfs_hub.count("whoami") == 20


def test_a_dropped_answer_leaves_the_commit_made(hub: Hub) -> None:
    first = push(hub)
    hub.drop("POST .*/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(hub, {"bank.json": b"2"}, parent=first)
    assert hub.seen("/commit/")[-1].status is None
    assert hub.read("models", REPO, "bank.json") == b"2"
    assert user(hub).model_info(REPO).sha != first


def test_a_cut_body_is_resumed_from_where_it_was_read(hub: Hub, waits: list[float]) -> None:
    push(hub)
    hub.cut("experts/000", after_bytes=100_000, times=2)
    folder = user(hub).snapshot_download(REPO)
    assert contents(folder) == FILES
    assert [r.bytes_out for r in hub.seen("GET .*experts/000")] == [100_000, 100_000, 300_000]
    assert waits == [1, 1]


def test_a_range_is_served_as_asked(lfs_hub: Hub) -> None:
    sha, data = push(lfs_hub), FILES["experts/000.safetensors"]
    url = f"{lfs_hub.endpoint}/{REPO}/resolve/{sha}/experts/000.safetensors"

    def get(byte_range: str) -> httpx2.Response:
        return httpx2.get(url, headers={"Range": f"bytes={byte_range}"}, follow_redirects=True)

    assert get("10-19").content == data[10:20]
    assert get("299990-").content == get("-10").content == get("299990-999999").content == data[-10:]
    assert get("10-19").headers["content-range"] == "bytes 10-19/300000"
    assert get("300000-").status_code == 416


def test_a_corrupt_file_has_one_other_byte(hub: Hub) -> None:
    push(hub)
    hub.corrupt("experts/000")
    hub.corrupt("bank.json", times=1)
    served = contents(user(hub).snapshot_download(REPO))
    assert [a ^ b for a, b in zip(served["bank.json"], b"{}", strict=True)] == [0, 0xFF]
    wrong = np.frombuffer(served["experts/000.safetensors"], np.uint8) ^ np.frombuffer(
        FILES["experts/000.safetensors"], np.uint8
    )
    assert wrong.nonzero()[0].tolist() == [150_000]
    again = user(hub).snapshot_download(REPO, force_download=True, allow_patterns="bank.json")
    assert (Path(again) / "bank.json").read_bytes() == b"{}"


def test_what_is_damaged_in_the_store_comes_wrong_on_every_way(hub: Hub) -> None:
    whole = {f"experts/{i:03}.safetensors": noise(200_000, i) for i in range(3)}
    push(hub, whole)
    hub.damage("models", REPO, "experts/001.safetensors")
    served = contents(user(hub).snapshot_download(REPO))
    assert [path for path in whole if served[path] != whole[path]] == ["experts/001.safetensors"]
    assert sum(a != b for a, b in zip(served["experts/001.safetensors"], whole["experts/001.safetensors"], strict=True)) == 1


def test_what_is_lost_is_listed_but_cannot_be_had(hub: Hub) -> None:
    push(hub)
    hub.lose("models", REPO, "experts/000.safetensors")
    assert "experts/000.safetensors" in user(hub).list_repo_files(REPO)
    error, message = (RuntimeError, "CAS object not found") if hub.store.xet else (RemoteEntryNotFoundError, "is missing")
    with pytest.raises(error, match=message):
        user(hub).snapshot_download(REPO)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_failing_xet_token_fails_soon(start_hub: Callable[[bool], Hub], status: int) -> None:
    hub = start_hub(True)
    push(hub)
    hub.fail("xet-write-token", status, times=None)
    with pytest.raises(ConnectionError, match=f"{status} "):
        push(hub, {"experts/001.safetensors": noise(1000, 1)})


def test_somebody_else_can_be_let_in_between(hub: Hub) -> None:
    first = push(hub)
    hub.grant("models", REPO, "bob")
    bob = user(hub, "hf_bob")
    hub.before("POST .*/commit/", lambda: bob.upload_file(path_or_fileobj=noise(2000), path_in_repo="b.bin", repo_id=REPO))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        push(hub, {"bank.json": b"2"}, parent=first)
    assert hub.read("models", REPO, "b.bin") == noise(2000)
    assert [r.status for r in hub.seen("/commit/")] == [200, 412, 200]  # in order of arrival


def test_names_that_leave_the_repository_are_refused_but_can_be_planted(lfs_hub: Hub) -> None:
    push(lfs_hub)
    for path in ("../x", "a/../b", "a//b", ".git/config", "./x", "a/..", "/x"):
        with pytest.raises(RefusedError, match="invalid path"):
            check_path(path)
    check_path("a/.b/..c/d..")
    lfs_hub.plant("models", REPO, "../x", b"evil")
    assert "../x" in user(lfs_hub).list_repo_files(REPO)
    lfs_hub.plant("models", REPO, "../x", None)
    assert "../x" not in user(lfs_hub).list_repo_files(REPO)


def test_an_upload_with_another_hash_is_refused(lfs_hub: Hub) -> None:
    key = hashlib.sha256(b"this").hexdigest()
    assert httpx2.put(f"{lfs_hub.storage}/_lfs/{key}", content=b"that").status_code == 400
    assert not lfs_hub.store.holds(key)
    assert list(lfs_hub.store.objects.iterdir()) == []


def test_a_commit_of_what_was_never_uploaded_is_refused(hub: Hub) -> None:
    push(hub)
    pointer = {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 10}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": pointer}]
    url, headers = f"{hub.endpoint}/api/models/{REPO}/commit/main", {"Authorization": "Bearer hf_alice"}
    answer = httpx2.post(url, headers=headers, content="\n".join(map(json.dumps, lines)))
    assert answer.status_code == 400
    assert "never uploaded" in answer.text


def test_bytes_are_counted_per_request(lfs_hub: Hub) -> None:
    push(lfs_hub)
    assert lfs_hub.bytes_in("PUT /_lfs") == 300_000
    lfs_hub.clear()
    user(lfs_hub).hf_hub_download(REPO, "bank.json")
    assert [(r.method, r.status, r.bytes_out) for r in lfs_hub.seen("bank.json")] == [("HEAD", 200, 0), ("GET", 200, 2)]
    assert lfs_hub.count() == 2
    assert lfs_hub.bytes_out() == 2


def test_an_error_of_the_server_itself_is_raised_by_stop(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "broken").start()
    hub.before("whoami", lambda: [][1])
    answer = httpx2.get(f"{hub.endpoint}/api/whoami-v2")
    assert answer.status_code == 500
    with pytest.raises(IndexError):
        hub.stop()


def test_a_stopped_hub_answers_nothing_even_on_an_open_connection(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "stopped", tokens={"hf_alice": "alice"}).start()
    with httpx2.Client(headers={"Authorization": "Bearer hf_alice"}) as client:
        assert client.get(f"{hub.endpoint}/api/whoami-v2").status_code == 200
        hub.stop()
        with pytest.raises(httpx2.TransportError):
            client.get(f"{hub.endpoint}/api/whoami-v2")


def test_the_machine_is_the_tests_own(lfs_hub: Hub, tmp_path: Path) -> None:
    push(lfs_hub)
    folder = HfApi().snapshot_download(REPO)  # no endpoint, no token: the fixture's Hub, anonymously
    assert Path(folder).is_relative_to(tmp_path)
    assert not [r.line for r in lfs_hub.seen("resolve") if "authorization" in r.headers]


RESULT = "{task: {type: rl}, dataset: {type: gym, name: reach}, metrics: [{type: mean_reward, value: 1.5}]}"


@pytest.mark.parametrize(
    ("front_matter", "error"),
    [
        ("license: [apache-2.0, mit]\ntags: [a]\nlibrary_name: m3dt-agent", None),
        (f"model-index: [{{name: a, results: [{RESULT}]}}]", None),
        ("license: mine", '"license" must be one of'),
        ("tags: rl", '"tags" must be an array'),
        ("tags: [1]", '"tags"[0] must be a non-empty string'),
        ("library_name: [m3dt]", '"library_name" must be a non-empty string'),
        ("model-index: {name: a}", '"model-index" must be an array'),
        ("model-index: [{results: []}]", '"model-index"[0].name is required'),
        (
            "model-index: [{name: a, results: [{task: {type: rl}, metrics: [{}]}]}]",
            '"model-index"[0].results[0].dataset is required',
        ),
        (f"model-index: [{{name: a, results: [{RESULT.replace('name: reach', 'x: 1')}]}}]", ".dataset.name is required"),
        (f"model-index: [{{name: a, results: [{RESULT.replace('value: 1.5', 'v: 1')}]}}]", ".metrics[0].value is required"),
        (f"model-index: [{{name: a, results: [{RESULT.replace('1.5', '.nan')}]}}]", "must not be NaN"),
        ("a: [", "Invalid YAML"),
        ("- a", "must be an object"),
    ],
)
def test_a_model_card_is_validated(front_matter: str, error: str | None) -> None:
    found = validate_card(f"---\n{front_matter}\n---\n# Title\n", "model")
    assert (found.errors == []) if error is None else any(error in message for message in found.errors)


@pytest.mark.parametrize(
    ("front_matter", "error"),
    [
        ("license: cc-by-4.0\nsize_categories: [1M<n<10M]\ntask_categories: [robotics]\npretty_name: A", None),
        ("configs: [{config_name: a, data_files: [{split: train, path: b}]}]", None),
        ("size_categories: [many]", '"size_categories" must be one of'),
        ("pretty_name: 3", '"pretty_name" must be a non-empty string'),
        ("task_categories: robotics", '"task_categories" must be an array'),
        ("configs: [{data_files: b}]", '"configs"[0].config_name is required'),
        ("configs: [{config_name: a, data_files: 3}]", "data_files must be a string"),
    ],
)
def test_a_dataset_card_is_validated(front_matter: str, error: str | None) -> None:
    found = validate_card(f"---\n{front_matter}\n---\n# Title\n", "dataset")
    assert (found.errors == []) if error is None else any(error in message for message in found.errors)


def test_the_client_hears_what_is_wrong_with_a_card(lfs_hub: Hub) -> None:
    with pytest.raises(ValueError, match='"license" must be one of'):
        push(lfs_hub, {"README.md": b"---\nlicense: mine\n---\n"})
    with pytest.raises(ValueError, match=r"license.*must be one of"):
        ModelCard("---\nlicense: mine\n---\n").validate()
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(lfs_hub, {"README.md": b"# Title\n"})
    ModelCard(CARD.decode()).validate()
