"""A loopback Hub whose answers a recipe changes on their way out.

    {"hub": [edit, …]}      where: one of PLACES, whose answers are changed; the first `times` of them (0: all)
    {"do": "json", "where", "edits"}            edits of a JSON body (edits_json.py)
    {"do": "header", "where", "name", "value"}  a header has another value, or is there twice ("twice": true)
    {"do": "status", "where", "status"}         another status, with the same body
    {"do": "body", "where", "kind", …}          cut, longer, flipped, other bytes, without end
    {"do": "plant", "file", "edits"}            a JSON file of the repository is another; the listing is true to it

It complains if a token comes to a host that it was not meant for, and if a client takes far more than it was promised.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

from hub_server import Hub
from hub_server.calls import Answer
from hub_server.http_server import Handler
from hub_server.store import Repo

from fuzz.edits_json import edit_json, expand
from fuzz.layout import BANK, DATA, TOKEN

PLACES = {
    "info": "^GET /api/(models|datasets)/alice/[a-z]+(/revision/[^/]+)?($|[?])",
    "head": "^HEAD .*/resolve/",
    "file": "^GET .*/resolve/",
    "storage": "^(GET|HEAD) /_cdn/",
    "tree": "^(GET|POST) /api/.*/(tree|paths-info)/",
    "any": "",
}
MOST_SENT = 64_000_000
"""Bytes of a body without end. Files of the templates have some kilobytes, so a client that takes so many believes too much."""
ENDLESS_BLOCK = 1 << 16
BOMB = 200_000_000
"""Bytes that a small compressed body unpacks to."""

Recipe = dict[str, Any]


class HostileHub:
    """Two repositories, a bank and datasets, and the answers to them."""

    def __init__(self, folder: Path, templates: Path) -> None:
        self.hub = Hub(folder, tokens={TOKEN: "alice"}, cdn_host="localhost")
        self.hub._server.RequestHandlerClass = HostileHandler
        self.hub._server.hostile = self
        self._fill(templates)
        self._clean = {key: dict(repo.branches) for key, repo in self.hub.repos.items()}
        self.edits: list[dict[str, Any]] = []
        self._used: list[int] = []
        self._complaints: list[str] = []
        self.hub.start()

    @property
    def endpoint(self) -> str:
        return self.hub.endpoint

    def _fill(self, templates: Path) -> None:
        for kind, repo_id, template in (("models", BANK, "hub bank"), ("datasets", DATA, "hub datasets")):
            repo = self.hub.repos[kind, repo_id] = Repo(kind, repo_id, "alice", writers={"alice"})
            folder = templates / template
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            stored = {name: self._stored(name, path.read_bytes()) for name, path in files.items()}
            repo.commit("main", stored, "all of it")

    def _stored(self, name: str, content: bytes) -> Any:
        if name.endswith((".safetensors", ".hdf5")):
            key = hashlib.sha256(content).hexdigest()
            self.hub.store.receive(key, iter([content]))
            return self.hub.store.large(key, len(content))
        return self.hub.store.add(content)

    def prepare(self, recipe: Recipe) -> None:
        """Takes over the recipe's edits."""
        self.edits = [edit for edit in recipe.get("hub", ()) if edit["do"] != "plant"]
        self._used = [0] * len(self.edits)
        self._complaints = []
        self.hub.clear()
        for key, branches in self._clean.items():
            self.hub.repos[key].branches = dict(branches)
        for edit in recipe.get("hub", ()):
            if edit["do"] == "plant":
                self._plant(edit)

    def _plant(self, edit: dict[str, Any]) -> None:
        kind, repo_id = ("models", BANK) if edit["file"] == "bank.json" else ("datasets", DATA)
        with contextlib.suppress(ValueError, RecursionError):
            text = edit_json(self.hub.read(kind, repo_id, edit["file"]).decode(), edit["edits"])
            self.hub.plant(kind, repo_id, edit["file"], text.encode(errors="surrogatepass"))

    def complain(self, text: str) -> None:
        self._complaints.append(text)

    def complaints(self) -> list[str]:
        """What was wrong with the requests since `prepare`."""
        errors, self.hub.errors[:] = list(self.hub.errors), []
        return sorted(set(self._complaints)) + [f"the test's own hub broke: {error!r}" for error in errors]

    def stop(self) -> None:
        self.hub.errors.clear()
        self.hub.stop()

    def edits_of(self, line: str) -> list[dict[str, Any]]:
        """The edits of the answer to a request."""
        found = []
        for i, edit in enumerate(self.edits):
            if re.search(PLACES[edit["where"]], line) and (not edit.get("times") or self._used[i] < edit["times"]):
                self._used[i] += 1
                found.append(edit)
        return found


class HostileHandler(Handler):
    """Answers as the loopback Hub does, then changes the answer."""

    def send(self, answer: Answer) -> None:
        hostile: HostileHub = self.server.hostile  # type: ignore[attr-defined]
        host = self.headers.get("host", "")
        if "authorization" in self.headers and host != f"127.0.0.1:{hostile.hub.port}":
            hostile.complain(f"token: it was sent to {host!r}")
        body = answer.body
        if answer.part is not None:
            content = answer.part.file.read_bytes()
            body = content[answer.part.first : answer.part.first + answer.part.length]
        reply = Reply(answer.status, [(name, str(value)) for name, value in answer.headers.items()], body)
        for edit in hostile.edits_of(self.request_seen.line):
            reply.change(edit)
        self.request_seen.status = reply.status
        self._write_reply(reply, hostile)

    def _write_reply(self, reply: Reply, hostile: HostileHub) -> None:
        length = [] if reply.endless or reply.has("Content-Length") else [("Content-Length", str(len(reply.body)))]
        try:
            phrase = HTTPStatus(reply.status).phrase
        except ValueError:
            phrase = "Odd"
        head = [f"HTTP/1.1 {reply.status} {phrase}"] + [f"{name}: {value}" for name, value in (*reply.headers, *length)]
        self.wfile.write("\r\n".join([*head, "", ""]).encode("utf-8", "surrogatepass"))
        if self.command == "HEAD":
            return
        self.write(reply.body)
        if reply.endless:
            self._without_end(hostile)
        if reply.endless or reply.has("Content-Length") or reply.changed:
            self.hang_up()

    def _without_end(self, hostile: HostileHub) -> None:
        sent = 0
        while sent < MOST_SENT:
            self.write(bytes(ENDLESS_BLOCK))
            sent += ENDLESS_BLOCK
        hostile.complain(f"size: it took {sent / 1e6:.0f} MB of a file of some kilobytes")


@functools.cache
def bomb() -> bytes:
    return gzip.compress(bytes(BOMB), compresslevel=1)


class Reply:
    """An answer as it is about to be written."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body, self.endless, self.changed = status, headers, body, False, False

    def has(self, name: str) -> bool:
        return any(name.lower() == known.lower() for known, _ in self.headers)

    def change(self, edit: dict[str, Any]) -> None:
        self.changed = True
        if edit["do"] == "json":
            with contextlib.suppress(ValueError, RecursionError):
                self.body = edit_json(self.body.decode(), edit["edits"]).encode(errors="surrogatepass")
        elif edit["do"] == "header":
            name = edit["name"]
            if not edit.get("twice"):
                self.headers = [(known, value) for known, value in self.headers if known.lower() != name.lower()]
            self.headers.append((name, expand(edit["value"])))
        elif edit["do"] == "status":
            self.status = edit["status"]
        elif edit["do"] == "body":
            self._change_body(edit)

    def _change_body(self, edit: dict[str, Any]) -> None:
        kind, at = edit["kind"], int(edit.get("at", 0.5) * max(len(self.body) - 1, 0))
        if kind == "cut":
            self.headers.append(("Content-Length", str(len(self.body))))
            self.body = self.body[:at]
        elif kind == "short":
            self.body = self.body[:at]
        elif kind == "flip" and self.body:
            self.body = self.body[:at] + bytes([self.body[at] ^ 255]) + self.body[at + 1 :]
        elif kind == "text":
            self.body = expand(edit["text"]).encode(errors="surrogatepass")
        elif kind == "bomb":
            self.headers.append(("Content-Encoding", "gzip"))
            self.body = bomb()
        elif kind == "endless":
            self.endless = True


def sample_answers(hostile: HostileHub) -> dict[str, str]:
    """Texts of the JSON answers, to choose places in."""
    from urllib.request import urlopen

    found = {}
    for name, kind, repo_id in (("hub bank", "models", BANK), ("hub datasets", "datasets", DATA)):
        with urlopen(f"{hostile.endpoint}/api/{kind}/{repo_id}?blobs=true") as answer:
            found[name] = json.dumps(json.loads(answer.read()))
    return found
