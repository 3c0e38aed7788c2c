"""HTTP for the loopback Hub: requests in, faults on the way, answers out."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from hub_server.calls import Answer, Call, Part, Request, as_json
from hub_server.routes import ROUTES
from hub_server.store import RefusedError

if TYPE_CHECKING:
    from hub_server.hub import Hub

CHUNK = 1 << 20  # bytes read or written at once


class Server(ThreadingHTTPServer):
    """A thread per connection. Open connections are known, so that stopping closes them and waits for their threads."""

    daemon_threads = False  # so that `server_close` waits for them
    request_queue_size = 128

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Notes the connection before its thread starts, so that none is missed by `close_connections`."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def close_connections(self) -> None:
        for connection in list(self.connections):
            shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours; anything else `stop` raises."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)


def shut(connection: socket.socket) -> None:
    """Close a connection both ways; the other side may have done so already."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EBADF):
            raise


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, lets the faults and the routes answer, and writes the answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """The hub keeps its own record."""

    def respond(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(self.command, unquote(self.path), headers)
        with self.hub.lock:
            self.hub.requests.append(self.request_seen)
        call = Call(self.command, self.path, headers, self.read_body(headers))
        try:
            answer = self.handled(call)
            for _ in call.stream:  # what the route left unread would be taken for the next request
                pass
            if self.hub.faults.take("drop", self.request_seen.line):
                self.hang_up()
            else:
                self.send(answer)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

    def handled(self, call: Call) -> Answer:
        """What the faults and the routes make of a call; an unforeseen error becomes a 500 that `stop` raises."""
        try:
            before = self.hub.faults.take("before", self.request_seen.line)
            if before is not None and before.callback is not None:
                before.callback()
            fail = self.hub.faults.take("fail", self.request_seen.line)
            if fail is not None and fail.body is not None:
                return Answer(fail.status, fail.headers, fail.body)
            if fail is not None:
                raise RefusedError(fail.status, "the test asked for this", headers=fail.headers)
            forge = self.hub.faults.take("forge", self.request_seen.line)
            answer = self.routed(call)
            return answer if forge is None or forge.change is None else forge.change(answer)
        except RefusedError as error:
            headers = {
                "X-Error-Message": error.message,
                **({"X-Error-Code": error.code} if error.code else {}),
                **error.headers,
            }
            return as_json({"error": error.message}, error.status, headers)
        except ConnectionError:
            raise
        except Exception as error:
            self.hub.errors.append(error)
            return as_json({"error": f"the test hub broke: {error!r}"}, 500)

    def routed(self, call: Call) -> Answer:
        for route in ROUTES:
            match = route.pattern.fullmatch(call.path)
            if match is None or call.method not in route.methods:
                continue
            arguments = [unquote(group or "") for group in match.groups()]
            if route.streams:
                return route.function(self.hub, call, *arguments)
            _ = call.body  # read before the lock: the client may be slow
            with self.hub.lock:
                return route.function(self.hub, call, *arguments)
        raise RefusedError(404, f"no route for {call.method} {call.path}")

    def read_body(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.received(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(headers.get("content-length", 0))
        while left:
            data = self.received(min(CHUNK, left))
            left -= len(data)
            yield data

    def received(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError("the client went away within a body")
        self.request_seen.bytes_in += len(data)
        return data

    def send(self, answer: Answer) -> None:
        self.request_seen.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.endless is not None:
            self.send_header("Connection", "close")
            self.end_headers()
            for data in answer.endless:
                self.write(data)
            self.hang_up()
            return
        self.send_header("Content-Length", str(answer.part.length if answer.part else len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if answer.part is not None:
            self.send_part(answer.part)
        else:
            self.write(answer.body)

    def send_part(self, part: Part) -> None:
        """The bytes of a file, with the faults that wait for it."""
        cut = self.hub.faults.take("cut", part.path)
        corrupt = self.hub.faults.take("corrupt", part.path)
        last = part.first + (part.length if cut is None else min(cut.after_bytes, part.length))
        with part.file.open("rb") as file:
            file.seek(part.first)
            for at in range(part.first, last, CHUNK):
                data = bytearray(file.read(min(CHUNK, last - at)))
                middle = part.size // 2 - at
                if corrupt is not None and 0 <= middle < len(data):
                    data[middle] ^= 0xFF
                self.write(bytes(data))
        if last < part.first + part.length:
            self.hang_up()

    def write(self, data: bytes) -> None:
        self.request_seen.bytes_out += len(data)
        self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        shut(self.connection)
