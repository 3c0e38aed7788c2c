"""A request to the loopback Hub and its answer, as the routes see them; who may do what, and a file's bytes on the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from hub_server.store import RefusedError, Repo

if TYPE_CHECKING:
    from hub_server.hub import Hub

# huggingface_hub tells this 401 from that of a missing repository by its text
BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass
class Request:
    """One request as it arrived (`path` unquoted, with its query; header names lower-case) and what became of it.

    `status` is None until it is answered, and stays so if the connection was dropped. Bytes are of bodies alone.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def line(self) -> str:
        """What patterns are searched in."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Part:
    """Bytes of a stored file to send: `length` from `first` on; `path` is its name in the repository."""

    file: Path
    path: str
    first: int
    length: int
    size: int


@dataclass(frozen=True)
class Answer:
    """Status, headers, and a body in memory, on disk, or made while it is sent (`endless`: until the client goes away)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    part: Part | None = None
    endless: Iterable[bytes] | None = None


@dataclass
class Call:
    """A request being handled; `stream` yields its body once."""

    method: str
    target: str
    headers: Mapping[str, str]
    stream: Iterator[bytes]

    @cached_property
    def body(self) -> bytes:
        return b"".join(self.stream)

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @cached_property
    def path(self) -> str:
        return urlsplit(self.target).path

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def option(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


def user_of(hub: Hub, call: Call) -> str | None:
    """The user of the call's token; None without one, 401 for an unknown one."""
    authorization = call.headers.get("authorization")
    if authorization is None:
        return None
    user = hub.tokens.get(authorization.removeprefix("Bearer "))
    if user is None:
        raise RefusedError(401, BAD_TOKEN)
    return user


def signed_in(hub: Hub, call: Call) -> str:
    user = user_of(hub, call)
    if user is None:
        raise RefusedError(401, "Invalid username or password.")
    return user


def find_repo(hub: Hub, call: Call, kind: str, repo_id: str, write: bool = False, content: bool = False) -> Repo:
    """The repository, if the call may see it, write to it, or read its files' content (which is what a gate closes)."""
    user, repo = user_of(hub, call), hub.repos.get((kind or "models", repo_id))
    if repo is None or (repo.private and user not in repo.writers):
        raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
    if content and repo.gated and user not in repo.writers:
        message = f"Access to {'model' if kind != 'datasets' else 'dataset'} {repo_id} is restricted."
        raise RefusedError(403 if user else 401, message, "GatedRepo")
    if write and user not in repo.writers:
        raise RefusedError(403 if user else 401, "you do not have write access to this repository")
    return repo


def content(call: Call, file: Path, path: str, key: str, headers: Mapping[str, str]) -> Answer:
    """A file, or the range of it that was asked for."""
    size = file.stat().st_size
    headers = {**headers, "ETag": f'"{key}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", ""))
    if asked is None:
        return Answer(200, headers, part=Part(file, path, 0, size, size))
    first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first >= size:
        return Answer(416, {**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(206, headers, part=Part(file, path, first, last - first + 1, size))
