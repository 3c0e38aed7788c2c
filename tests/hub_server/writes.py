"""The loopback Hub's answers to who writes: repositories, tags and branches, uploads and commits."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hub_server.calls import Answer, Call, as_json, find_repo, signed_in
from hub_server.cards import validate_card
from hub_server.store import RefusedError, Repo, StoredFile, check_path

if TYPE_CHECKING:
    from hub_server.hub import Hub

LARGE = (
    ".safetensors",
    ".hdf5",
    ".h5",
    ".arrow",
    ".parquet",
    ".bin",
    ".npy",
    ".npz",
    ".pt",
)  # travel as LFS whatever their size
XET_TOKEN_S = 3_600


def validate_yaml(hub: Hub, call: Call) -> Answer:
    found = validate_card(call.json["content"], call.json.get("repoType") or "model")
    return as_json(found.as_json(), 400 if found.errors else 200)


def create_repo(hub: Hub, call: Call) -> Answer:
    user, wanted = signed_in(hub, call), call.json
    kind, namespace = f"{wanted.get('type') or 'model'}s", wanted.get("organization") or user
    if namespace != user:
        raise RefusedError(403, f"You don't have the rights to create a repository under the namespace {namespace!r}")
    repo_id = f"{namespace}/{wanted['name']}"
    answer = {"url": hub.url(kind, repo_id), "name": repo_id, "id": repo_id}
    if (kind, repo_id) in hub.repos:
        return as_json({"error": f"You already created this {kind[:-1]} repo: {repo_id}", **answer}, 409)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    repo = hub.repos[kind, repo_id] = Repo(kind, repo_id, user, private, writers={user})
    attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
    repo.commit("main", {".gitattributes": hub.store.add(attributes.encode())}, "initial commit")
    return as_json(answer)


def delete_repo(hub: Hub, call: Call) -> Answer:
    wanted = call.json
    namespace = wanted.get("organization") or signed_in(hub, call)
    repo = find_repo(hub, call, f"{wanted.get('type') or 'model'}s", f"{namespace}/{wanted['name']}", write=True)
    del hub.repos[repo.kind, repo.repo_id]
    return as_json({})


def tag(hub: Hub, call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id, write=True)
    if call.method == "DELETE":
        if repo.tags.pop(revision, None) is None:
            raise RefusedError(404, f"no tag {revision!r}", "RevisionNotFound")
        return as_json({})
    name = call.json["tag"]
    if name in repo.tags:
        raise RefusedError(409, f"Tag reference exists already: {name}")
    repo.tags[name] = repo.sha(revision)
    return as_json({"name": name})


def branch(hub: Hub, call: Call, kind: str, repo_id: str, name: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id, write=True)
    if call.method == "DELETE":
        if name == "main" or repo.branches.pop(name, None) is None:
            raise RefusedError(404, f"no branch {name!r} to delete", "RevisionNotFound")
        return as_json({})
    if name in repo.branches:
        raise RefusedError(409, f"Reference already exists: {name}")
    repo.branches[name] = repo.sha(call.json.get("startingPoint") or "main")
    return as_json({})


def preupload(hub: Hub, call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    files = find_repo(hub, call, kind, repo_id, write=True).tree(revision)

    def mode(asked: Mapping[str, Any]) -> dict[str, Any]:
        path, large = asked["path"], asked["size"] >= hub.lfs_bytes or asked["path"].endswith(LARGE)
        known = {"oid": files[path].key} if path in files else {}
        return {"path": path, "shouldIgnore": False, "uploadMode": "lfs" if large else "regular", **known}

    return as_json({"files": [mode(asked) for asked in call.json["files"]]})


def lfs_batch(hub: Hub, call: Call, kind: str, repo_id: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id, write=True)
    verify = {"href": f"{hub.endpoint}/_lfs_verify/{repo.kind}/{repo.repo_id}"}
    objects = []
    for asked in call.json["objects"]:
        actions = {"upload": {"href": f"{hub.storage}/_lfs/{asked['oid']}"}, "verify": verify}
        objects.append(
            {"oid": asked["oid"], "size": asked["size"]} | ({} if hub.store.holds(asked["oid"]) else {"actions": actions})
        )
    return as_json({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})


def lfs_put(hub: Hub, call: Call, sha256: str) -> Answer:
    hub.store.receive(sha256, call.stream)
    return Answer()


def lfs_verify(hub: Hub, call: Call, kind: str, repo_id: str) -> Answer:
    find_repo(hub, call, kind, repo_id, write=True)
    if not hub.store.holds(call.json["oid"]) or hub.store.open(call.json["oid"]).stat().st_size != call.json["size"]:
        raise RefusedError(404, f"LFS object {call.json['oid']} was not uploaded")
    return as_json({})


def xet_token(hub: Hub, call: Call, kind: str, repo_id: str, mode: str, revision: str) -> Answer:
    if not hub.store.xet:
        raise RefusedError(404, "Xet is not enabled on this server")
    find_repo(hub, call, kind, repo_id, write=mode == "write", content=True)
    cas, expires = f"local://{hub.store.cas}", int(time.time()) + XET_TOKEN_S
    headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "xet-token", "X-Xet-Token-Expiration": str(expires)}
    return as_json({"casUrl": cas, "accessToken": "xet-token", "exp": expires}, headers=headers)


def commit(hub: Hub, call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id, write=True)
    header, *operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    if revision not in repo.branches:
        raise RefusedError(404, f"no branch {revision!r}", "RevisionNotFound")
    parent = header["value"].get("parentCommit")
    if parent and not repo.branches[revision].startswith(parent):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.tree(revision))
    for operation in operations:
        change(hub, files, operation["key"], operation["value"])
    sha = repo.commit(revision, files, header["value"]["summary"])
    url = f"{hub.url(repo.kind, repo.repo_id)}/commit/{sha}"
    return as_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def change(hub: Hub, files: dict[str, StoredFile], key: str, value: Mapping[str, Any]) -> None:
    """One operation of a commit, on the tree to be."""
    path = value["path"].rstrip("/")
    check_path(path)
    if key == "file":
        files[path] = hub.store.add(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[path] = hub.store.large(value["oid"], value.get("size"))
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise RefusedError(404, f"no file {path!r} to delete", "EntryNotFound")
    elif key == "deletedFolder":
        for inside in [name for name in files if name.startswith(f"{path}/")]:
            del files[inside]
    else:
        raise RefusedError(400, f"unknown operation {key!r}")
