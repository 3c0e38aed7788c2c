"""GET requests to a Hub that may be slow, broken or hostile: bounded in time, in size, and in where the token goes.

    read_json   a whole answer, at most `MOST_JSON` bytes of it
    stream      an answer piece by piece, for files

huggingface_hub's own client sends the requests, so proxies and certificates are as the user has set them up, but none of its
functions is used: they wait for ever by default, read an answer whole before they look at its size, and go on as long as a byte
arrives now and then. Redirects are followed here. The token goes to the endpoint it was given for, never to where that
redirects.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin

from huggingface_hub import get_session
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined] # documented, but not exported for mypy

from m3dt_agent.errors import ConfigError, HubError
from m3dt_agent.hub.endpoints import origin_of
from m3dt_agent.hub.failures import AnswerError, StalledError
from m3dt_agent.system.documents import read_document

T = TypeVar("T")

TIMEOUT_S, TIMEOUT_VARIABLE = 30.0, "M3DT_HUB_TIMEOUT"
SPEED, SPEED_VARIABLE = 1_000.0, "M3DT_HUB_MIN_SPEED"
UPLOAD_TIMEOUT_S = 300.0
"""Seconds without a byte after which an upload has failed."""
MOST_JSON = 16 << 20
"""The longest answer that is read whole: a listing of some 50,000 files."""
_MOST_SAID = 64 << 10  # bytes of an error's explanation
_MOST_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-", re.ASCII)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take.

    timeout_s: seconds without a byte. speed: bytes a second, averaged over twice that time, below which a connection counts as
    stalled; 0: however slow.
    """

    timeout_s: float = TIMEOUT_S
    speed: float = SPEED

    @classmethod
    def from_environment(cls) -> Patience:
        """As M3DT_HUB_TIMEOUT and M3DT_HUB_MIN_SPEED say.

        Raises:
            ConfigError: one of them is not such a number.
        """
        return cls(_number(TIMEOUT_VARIABLE, TIMEOUT_S, above=0.0), _number(SPEED_VARIABLE, SPEED, above=-1.0))

    @property
    def window_s(self) -> float:
        """Seconds within which an answer must begin, and over which its speed is averaged."""
        return 2 * self.timeout_s

    def stalled(self, what: str) -> StalledError:
        """The error of a server that is too slow."""
        return StalledError(f"{what}; {TIMEOUT_VARIABLE} and {SPEED_VARIABLE} in the environment allow for slower connections")

    def steady(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks, as long as they come fast enough.

        Raises:
            StalledError: they do not.
        """
        began, arrived = time.monotonic(), 0
        for chunk in chunks:
            arrived += len(chunk)
            yield chunk
            passed = time.monotonic() - began
            if passed > self.window_s:
                if arrived < self.speed * passed:
                    raise self.stalled(f"the Hub sends fewer than {self.speed:,.0f} bytes a second")
                began, arrived = time.monotonic(), 0

    def within(self, call: Callable[[], T], late: Callable[[T], object] = lambda _: None) -> T:
        """What `call` returns within `window_s`, which it spends in a thread of its own. late: takes a result that comes later.

        Raises:
            StalledError: nothing by then. Whatever `call` raises.
        """
        outcome: Future[T] = Future()

        def work() -> None:
            try:
                result = call()
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        threading.Thread(target=contextvars.copy_context().run, args=(work,), name="hub-request", daemon=True).start()
        try:
            return outcome.result(self.window_s)
        except BaseException as error:
            overdue = not outcome.done() and isinstance(error, TimeoutError)
            outcome.add_done_callback(lambda done: None if done.exception() else late(done.result()))
            if overdue:
                raise self.stalled(f"the Hub has not answered within {self.window_s:,.0f} seconds") from None
            raise


def _number(variable: str, default: float, above: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = above
    if not above < value < 1e9:
        raise ConfigError(f"the environment variable {variable} must be a number such as {default:g}; it is {text!r}")
    return max(value, 0.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer. first: where in the file it begins. length: bytes that the server announces, None if it does not.
    chunks: the bytes, once."""

    first: int
    length: int | None
    chunks: Iterator[bytes]


class Transport:
    """Requests to one endpoint with one token (None: none)."""

    def __init__(self, endpoint: str, token: str | None, patience: Patience) -> None:
        self.endpoint, self.patience = endpoint, patience
        # identity: so that bytes are counted and hashed as they are
        self._headers = {"user-agent": "m3dt-agent", "accept-encoding": "identity"}
        self._own_headers = self._headers | ({"authorization": f"Bearer {token}"} if token else {})

    def read_json(self, path: str, what: str) -> dict[str, Any]:
        """The JSON object at `path` of the endpoint. what: what errors call it.

        Raises:
            HubError: it is none. AnswerError: it is too long. Whatever huggingface_hub and its client raise for an answer that
                is an error.
        """
        with self.stream(self.endpoint + path) as answer:
            body = bytearray()
            for chunk in answer.chunks:
                body += chunk
                if len(body) > MOST_JSON:
                    raise AnswerError(f"{what} is longer than the {MOST_JSON >> 20} MB that are read of it")
        found: dict[str, Any] = read_document(bytes(body), dict[str, Any], HubError, name=what, max_bytes=MOST_JSON)
        return found

    @contextlib.contextmanager
    def stream(self, url: str, first: int = 0) -> Iterator[Answer]:
        """The answer to a GET of `url`. first: the byte from which it is wanted; the server may send all of it nevertheless.

        Raises:
            StalledError: the server is too slow. Whatever huggingface_hub and its client raise for an answer that is an error.
        """
        response = self._send(url, {"range": f"bytes={first}-"} if first else {})
        try:
            length = response.headers.get("content-length", "")
            yield Answer(
                _first_byte(response),
                int(length) if re.fullmatch("[0-9]{1,18}", length) else None,
                self.patience.steady(response.iter_raw()),
            )
        finally:
            response.close()

    def _send(self, url: str, headers: dict[str, str]) -> Any:
        for _ in range(_MOST_REDIRECTS + 1):
            own = origin_of(url) == origin_of(self.endpoint)
            response = self._open(url, (self._own_headers if own else self._headers) | headers)
            if response.status_code in (200, 206):
                return response
            with contextlib.closing(response):
                if response.status_code // 100 != 3 or "location" not in response.headers:
                    self._refuse(response)
                url = urljoin(url, response.headers["location"])
        raise AnswerError(f"the Hub redirects more than {_MOST_REDIRECTS} times")

    def _open(self, url: str, headers: dict[str, str]) -> Any:
        def send() -> Any:
            client = get_session()
            request = client.build_request("GET", url, headers=headers, timeout=self.patience.timeout_s)
            return client.send(request, stream=True, follow_redirects=False)

        return self.patience.within(send, late=lambda response: response.close())

    def _refuse(self, response: Any) -> None:
        """Raises what huggingface_hub raises for this answer, of whose body only the beginning is read."""
        said = b""
        with contextlib.suppress(Exception):  # the status says enough
            for chunk in self.patience.steady(response.iter_raw()):
                said += chunk
                if len(said) > _MOST_SAID:
                    break
        kept = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_THE_BODY]
        short = type(response)(response.status_code, headers=kept, content=said[:_MOST_SAID], request=response.request)
        hf_raise_for_status(short)
        raise AnswerError(f"the Hub answers with status {response.status_code}, which means nothing here")


_OF_THE_BODY = ("content-length", "content-encoding", "transfer-encoding")


def _first_byte(response: Any) -> int:
    """Where in the file the body of a 200 or 206 begins."""
    if response.status_code == 200:
        return 0
    found = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
    if found is None:
        raise AnswerError("the Hub sends a part of the file without saying which")
    return int(found[1])


def bound_uploads() -> None:
    """Gives huggingface_hub's client a limit for each wait, unless somebody has set one: by itself it waits for ever.

    An upload is that client's own business, so its limit is a long one: the Hub may work on a commit for minutes.
    """
    client = get_session()
    if client.timeout.read is None:
        client.timeout = UPLOAD_TIMEOUT_S
