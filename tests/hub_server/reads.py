"""The loopback Hub's answers to who only reads: accounts, repositories, what a revision holds, and the files themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from hub_server.calls import Answer, Call, as_json, content, find_repo, signed_in, user_of
from hub_server.cards import card_data
from hub_server.store import Commit, RefusedError, Repo, StoredFile

if TYPE_CHECKING:
    from hub_server.hub import Hub

PAGE = 1_000  # entries of a tree listing per request, as on the Hub


def whoami(hub: Hub, call: Call) -> Answer:
    user = signed_in(hub, call)
    return as_json({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token"}})


def auth_check(hub: Hub, call: Call, kind: str, repo_id: str) -> Answer:
    find_repo(hub, call, kind, repo_id, content=True)
    return as_json({})


def list_repos(hub: Hub, call: Call, kind: str) -> Answer:
    user, author, search = user_of(hub, call), call.option("author"), call.option("search").lower()
    infos = [
        describe(hub, repo, repo.branches["main"])
        for repo in hub.repos.values()
        if repo.kind == kind and (not repo.private or user in repo.writers)
        if author in ("", repo.owner) and search in repo.repo_id.lower()
    ]
    return as_json([info for info in infos if all(fits(info, wanted) for wanted in call.query.get("filter", []))])


def fits(info: Mapping[str, Any], wanted: str) -> bool:
    """Whether a repository passes one filter: a part of its name, or one of its tags."""
    return wanted[13:] in info["id"] if wanted.startswith("dataset_name:") else wanted in info["tags"]


def describe(hub: Hub, repo: Repo, sha: str, blobs: bool = False) -> dict[str, Any]:
    """What the Hub says about a repository at a commit."""
    tree = repo.commits[sha].tree
    readme = hub.store.open(tree["README.md"].key).read_text("utf-8") if "README.md" in tree else ""
    card, first = card_data(readme), next(iter(repo.commits.values()))
    tags = [*(card.get("tags") or []), *([card["library_name"]] if "library_name" in card else [])]
    return {
        "_id": repo.repo_id,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.owner,
        "sha": sha,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags + ([f"license:{card['license']}"] if "license" in card else []),
        "cardData": card,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "createdAt": first.iso_date,
        "lastModified": repo.commits[sha].iso_date,
        "siblings": [sibling(path, file, blobs) for path, file in sorted(tree.items())],
    }


def sibling(path: str, file: StoredFile, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return {"rfilename": path, "size": file.size, "blobId": file.oid, **({"lfs": lfs} if file.sha256 else {})}


# ---- reading what a revision holds


def info(hub: Hub, call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id)
    return as_json(describe(hub, repo, repo.sha(revision or "main"), "blobs" in call.query))


def refs(hub: Hub, call: Call, kind: str, repo_id: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id)
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.branches.items()]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()]
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def commits(hub: Hub, call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id)

    def row(sha: str, commit: Commit) -> dict[str, Any]:
        return {"id": sha, "title": commit.title, "message": "", "authors": [{"user": repo.owner}], "date": commit.iso_date}

    return as_json([row(sha, commit) for sha, commit in repo.history(revision)])


def tree(hub: Hub, call: Call, kind: str, repo_id: str, revision: str, folder: str) -> Answer:
    files, inside = find_repo(hub, call, kind, repo_id).tree(revision), folder.strip("/")
    depth = len(inside.split("/")) if inside else 0
    rows: dict[str, dict[str, Any]] = {}
    recursive = call.option("recursive").lower() in ("true", "1")
    for path in sorted(path for path in files if not inside or path.startswith(f"{inside}/")):
        parts = path.split("/")
        for length in range(depth + 1, len(parts) if recursive else min(depth + 2, len(parts))):
            parent = "/".join(parts[:length])
            rows[parent] = {"type": "directory", "path": parent, "oid": hashlib.sha1(parent.encode()).hexdigest(), "size": 0}
        if recursive or len(parts) == depth + 1:
            rows[path] = entry(hub, path, files[path])
    if inside and not rows:
        raise RefusedError(404, f"{inside} does not exist", "EntryNotFound")
    return page_of(hub, call, list(rows.values()))


def page_of(hub: Hub, call: Call, rows: list[dict[str, Any]]) -> Answer:
    """One page of a listing, with a link to the next."""
    start = int(call.option("cursor", "0"))
    headers = {}
    if start + PAGE < len(rows):
        options = {name: values[0] for name, values in call.query.items()} | {"cursor": str(start + PAGE)}
        query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
        headers["Link"] = f'<{hub.endpoint}{call.path}?{query}>; rel="next"'
    return as_json(rows[start : start + PAGE], headers=headers)


def paths_info(hub: Hub, call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    files = find_repo(hub, call, kind, repo_id).tree(revision)
    paths = parse_qs(call.body.decode()).get("paths", [])
    return as_json([entry(hub, path, files[path]) for path in paths if path in files])


def entry(hub: Hub, path: str, file: StoredFile) -> dict[str, Any]:
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    row = {"type": "file", "path": path, "size": file.size, "oid": file.oid, **({"lfs": lfs} if file.sha256 else {})}
    return row | ({"xetHash": file.xet_hash} if hub.over_xet(path, file) else {})


def resolve(hub: Hub, call: Call, kind: str, repo_id: str, revision: str, path: str) -> Answer:
    repo = find_repo(hub, call, kind, repo_id, content=True)
    sha = repo.sha(revision)
    file, headers = repo.commits[sha].tree.get(path), {"X-Repo-Commit": sha}
    if file is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
    if file.sha256 is None:
        return content(call, hub.store.open(file.key), path, file.key, headers)
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.key}"', "ETag": f'"{file.key}"'}
    if hub.over_xet(path, file):
        route = f"{hub.endpoint}/api/{repo.kind}/{repo_id}/xet-read-token/{sha}"
        headers |= {"X-Xet-Hash": str(file.xet_hash), "Link": f'<{route}>; rel="xet-auth"'}
    if hub.cdn_host is None:
        return content(call, hub.store.open(file.key), path, file.key, headers)
    return Answer(302, {**headers, "Location": f"{hub.storage}/_cdn/{file.key}?f={quote(path)}&signature=1"})


def cdn(hub: Hub, call: Call, key: str) -> Answer:
    if "authorization" in call.headers:
        raise RefusedError(400, "only one way of signing is allowed, and the URL is signed")  # as S3 does
    return content(call, hub.store.open(key), call.option("f"), key, {})
