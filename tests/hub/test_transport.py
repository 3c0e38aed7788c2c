"""Requests to a server that redirects, trickles its headers, or answers what no Hub would."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hub_server import Answer, Hub
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError

from m3dt_agent.errors import HubError
from m3dt_agent.hub.failures import AnswerError, StalledError
from m3dt_agent.hub.transport import UPLOAD_TIMEOUT_S, Patience, Transport, bound_uploads

ALICE, PATH = "hf_alice", "/api/models/alice/bank"
FAST = Patience(timeout_s=0.2)


@pytest.fixture
def transport(lfs_hub: Hub) -> Transport:
    HfApi(endpoint=lfs_hub.endpoint, token=ALICE).create_repo("alice/bank")
    lfs_hub.clear()
    return Transport(lfs_hub.endpoint, ALICE, Patience())


def redirect(to: str, status: int = 307) -> Callable[[Answer], Answer]:
    return lambda _: Answer(status, {"Location": to})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_at_home_keeps_the_token_and_one_elsewhere_does_not(lfs_hub: Hub, transport: Transport, status: int) -> None:
    lfs_hub.forge(f"{PATH}$", redirect(f"{PATH}?moved=1", status))
    assert transport.read_json(PATH, "it")["id"] == "alice/bank"
    assert lfs_hub.requests[-1].headers["authorization"] == f"Bearer {ALICE}"
    elsewhere = lfs_hub.endpoint.replace("127.0.0.1", "localhost")
    lfs_hub.forge(f"{PATH}[?]moved=1", redirect(f"{elsewhere}{PATH}?moved=2", status))
    transport.read_json(PATH, "it")
    assert lfs_hub.requests[-1].headers["host"].startswith("localhost")
    assert "authorization" not in lfs_hub.requests[-1].headers


@pytest.mark.parametrize("to", ["file:///etc/passwd", "local:///x", "//", "http://", "http://[", "gopher://127.0.0.1/x"])
def test_a_redirect_to_what_is_no_server(lfs_hub: Hub, transport: Transport, to: str) -> None:
    lfs_hub.forge(PATH, redirect(to))
    with pytest.raises(Exception) as found:  # noqa: PT011 - of httpx's many; the repository makes them one kind
        transport.read_json(PATH, "it")
    assert not isinstance(found.value, AssertionError | OSError)


def test_redirects_without_an_end(lfs_hub: Hub, transport: Transport) -> None:
    lfs_hub.forge(PATH, redirect(PATH))
    with pytest.raises(AnswerError, match="more than 5 times"):
        transport.read_json(PATH, "it")
    assert lfs_hub.count(PATH) == 6


@pytest.mark.parametrize("status", [201, 204, 304, 300])
def test_a_status_that_means_nothing_here(lfs_hub: Hub, transport: Transport, status: int) -> None:
    lfs_hub.forge(PATH, lambda _: Answer(status, {}, b""))
    with pytest.raises(AnswerError, match=f"status {status}"):
        transport.read_json(PATH, "it")


def test_an_error_is_huggingface_hub_s_with_the_beginning_of_what_was_said(lfs_hub: Hub, transport: Transport) -> None:
    lfs_hub.fail(PATH, 418, body=b"x" * 3_000_000)
    with pytest.raises(HfHubHTTPError) as found:
        transport.read_json(PATH, "it")
    assert found.value.response.status_code == 418
    assert len(str(found.value)) < 70_000


def test_compressed_answers_are_not_asked_for(lfs_hub: Hub, transport: Transport) -> None:
    """A few kilobytes of gzip are gigabytes of text: what arrives is taken as it is."""

    def compressed(answer: Answer) -> Answer:
        return Answer(200, {"Content-Encoding": "gzip"}, gzip.compress(answer.body))

    lfs_hub.forge(PATH, compressed)
    with pytest.raises(HubError, match="it is damaged or foreign"):
        transport.read_json(PATH, "it")
    assert lfs_hub.requests[-1].headers["accept-encoding"] == "identity"


@pytest.fixture
def trickling() -> Iterator[str]:
    """The address of a server that sends the headers of an answer, a byte now and then."""
    stop, server = threading.Event(), socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=trickle, args=(connection,), daemon=True).start()

    def trickle(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Header: ")
                while not stop.wait(0.05):
                    connection.sendall(b"a")
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    stop.set()
    server.close()


def test_headers_that_trickle(trickling: str) -> None:
    began = time.monotonic()
    with pytest.raises(StalledError, match=r"not answered within 0 seconds.*M3DT_HUB_TIMEOUT"):
        Transport(trickling, None, FAST).read_json(PATH, "it")
    assert time.monotonic() - began < 3


def test_what_a_call_returns_or_raises_comes_through() -> None:
    assert FAST.within(lambda: 7) == 7
    with pytest.raises(TimeoutError, match="its own"):
        FAST.within(lambda: (_ for _ in ()).throw(TimeoutError("its own")))
    late: list[int] = []
    with pytest.raises(StalledError):
        FAST.within(lambda: time.sleep(0.6) or 8, late=late.append)
    time.sleep(0.4)
    assert late == [8]


def test_uploads_wait_for_minutes_and_not_for_ever(lfs_hub: Hub) -> None:
    bound_uploads()
    assert get_session().timeout.read == UPLOAD_TIMEOUT_S
    get_session().timeout = 5.0
    bound_uploads()
    assert get_session().timeout.read == 5.0  # somebody's own setting
