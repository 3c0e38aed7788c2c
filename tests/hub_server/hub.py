"""The loopback Hub: what tests ask of it; what it is and speaks: `hub_server`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from hub_server.calls import Answer, Request
from hub_server.faults import Fault, Faults
from hub_server.http_server import Server
from hub_server.store import ObjectStore, Repo, StoredFile


class Hub:
    """The Hub: repositories by (kind, id), users by token, faults to come, requests seen.

    Args:
        root: an empty folder for what it stores.
        tokens: token → user name.
        lfs_bytes: size from which any file travels as LFS (or Xet).
        cdn_host: another name of this machine, under which LFS objects are up- and downloaded; None: the origin's own.
        xet: whether large files are stored with Xet when the client can.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        tokens: Mapping[str, str] | None = None,
        lfs_bytes: int = 1_000_000,
        cdn_host: str | None = None,
        xet: bool = False,
        port: int = 0,
    ) -> None:
        self.store = ObjectStore(Path(root), xet)
        self.tokens, self.lfs_bytes, self.cdn_host = dict(tokens or {}), lfs_bytes, cdn_host
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.faults = Faults()
        self.lock = threading.RLock()
        self._server = Server(self, port)
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.02}, name="hub", daemon=True)
        self.port: int = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://{cdn_host or '127.0.0.1'}:{self.port}"

    def start(self) -> Hub:
        """Serve from a thread of its own."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving, close every connection and wait for its thread; raises the first error that was the server's own."""
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()
        if self.errors:
            raise self.errors[0]

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, kind: str, repo_id: str) -> str:
        """The page of a repository."""
        return f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"

    # ---- repositories

    def gate(self, kind: str, repo_id: str) -> None:
        """Close the files of a repository to all who may not write to it (its description and listing stay public)."""
        self.repos[kind, repo_id].gated = True

    def grant(self, kind: str, repo_id: str, user: str) -> None:
        """Let another user read and write a repository."""
        self.repos[kind, repo_id].writers.add(user)

    def read(self, kind: str, repo_id: str, path: str, revision: str = "main") -> bytes:
        """The bytes of a file as they are stored."""
        with self.lock:
            return self.store.open(self.repos[kind, repo_id].tree(revision)[path].key).read_bytes()

    def plant(self, kind: str, repo_id: str, path: str, data: bytes | None) -> str:
        """Commit a file (None: its removal) behind the API's back, under any name whatever; returns the commit's sha."""
        with self.lock:
            repo = self.repos[kind, repo_id]
            files = {name: file for name, file in repo.tree().items() if name != path}
            if data is not None:
                files[path] = self.store.add(data)
            return repo.commit("main", files, f"plant {path}")

    def damage(self, kind: str, repo_id: str, path: str) -> None:
        """Invert a byte of a file where it is stored: it then comes wrong on every way, over Xet too."""
        with self.lock:
            self.store.damage(self.repos[kind, repo_id].tree()[path])

    def lose(self, kind: str, repo_id: str, path: str) -> None:
        """Remove the bytes of a file that stays listed (with Xet also those of files uploaded together with it)."""
        with self.lock:
            self.store.lose(self.repos[kind, repo_id].tree()[path])

    def over_xet(self, path: str, file: StoredFile) -> bool:
        """Whether to offer a file by Xet: it is there, and no fault waits for its bytes to come over HTTP."""
        return file.xet_hash is not None and not any(self.faults.waits(kind, path) for kind in ("cut", "corrupt"))

    # ---- faults: patterns are searched in "METHOD path?query", or in a file's path; `times` None is for ever

    def fail(
        self,
        pattern: str,
        status: int,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Answer the next matching requests with an error; `headers` such as Retry-After or X-Error-Code; `body`: instead of
        the Hub's own."""
        self.faults.add(Fault("fail", re.compile(pattern), times, status=status, headers=headers or {}, body=body))

    def forge(self, pattern: str, change: Callable[[Answer], Answer], times: int | None = None) -> None:
        """Answer the next matching requests with what `change` makes of the answer."""
        self.faults.add(Fault("forge", re.compile(pattern), times, change=change))

    def drop(self, pattern: str, times: int | None = 1) -> None:
        """Handle the next matching requests, then close the connection instead of answering."""
        self.faults.add(Fault("drop", re.compile(pattern), times))

    def before(self, pattern: str, callback: Callable[[], object], times: int | None = 1) -> None:
        """Run a callback before the next matching request is handled; it may use the hub, with a client too."""
        self.faults.add(Fault("before", re.compile(pattern), times, callback=callback))

    def cut(self, path: str, after_bytes: int, times: int | None = 1) -> None:
        """Close the connection after so many bytes of the next bodies of matching files (which then do not come by Xet)."""
        self.faults.add(Fault("cut", re.compile(path), times, after_bytes=after_bytes))

    def corrupt(self, path: str, times: int | None = None) -> None:
        """Send matching files with the byte in their middle inverted (they then do not come by Xet)."""
        self.faults.add(Fault("corrupt", re.compile(path), times))

    def heal(self) -> None:
        """Forget all faults."""
        self.faults.clear()

    # ---- what was asked

    def clear(self) -> None:
        """Forget the requests seen so far."""
        with self.lock:
            self.requests.clear()

    def seen(self, pattern: str = "") -> list[Request]:
        """The requests in whose "METHOD path?query" the pattern is found, in order of arrival."""
        with self.lock:
            return [request for request in self.requests if re.search(pattern, request.line)]

    def count(self, pattern: str = "") -> int:
        """How many requests match."""
        return len(self.seen(pattern))

    def bytes_in(self, pattern: str = "") -> int:
        """Bytes of the bodies of matching requests."""
        return sum(request.bytes_in for request in self.seen(pattern))

    def bytes_out(self, pattern: str = "") -> int:
        """Bytes of the bodies of the answers to matching requests."""
        return sum(request.bytes_out for request in self.seen(pattern))

    def xet_bytes(self) -> int:
        """Bytes in hf_xet's store, deduplicated: the difference over an upload is what the upload moved."""
        return self.store.xet_bytes()
