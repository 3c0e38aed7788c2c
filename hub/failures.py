"""Failures of the Hub: which of them are worth another try, how long to wait, and what to tell a person.

huggingface_hub, httpx and hf_xet raise exceptions of many kinds. Their messages hold addresses, which may carry a signature,
and what a server said, which may be anything: so a `HubError` is made of redacted text alone, and does not carry them along.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from m3dt_agent.errors import HubError, M3DTError
from m3dt_agent.hub.endpoints import OFFICIAL_ENDPOINT
from m3dt_agent.hub.redaction import redact, shown_endpoint
from m3dt_agent.system.disk import disk_space_errors, path_errors

T = TypeVar("T")

ATTEMPTS = 4
"""Tries of a request that huggingface_hub itself does not repeat; the waits between them are 1, 2 and 4 seconds."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_UNREACHABLE = ("ConnectError", "ConnectTimeout")  # of httpx
_LONGEST_WAIT = 60.0  # seconds; a longer Retry-After of the server is cut to this


class StalledError(TimeoutError):
    """The server answers too slowly; its message says what the limit is and how to change it."""


class AnswerError(Exception):
    """An answer that means nothing, or too much of one."""


class RefusedError(HubError):
    """A request failed. status: of the answer, None if there was none. transient: another try may help. no_repository: there is
    none of this name, or the token may not see it. wait: the seconds that the server asks for."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        transient: bool = False,
        no_repository: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.transient, self.no_repository, self.wait = status, transient, no_repository, wait

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.status, self.transient, self.no_repository, self.wait)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asked, for messages. repo_id: as it was given, which may have meant a folder."""

    endpoint: str
    repo_id: str
    token: str | None

    @property
    def given(self) -> str:
        """With or without a token."""
        return "with the token given" if self.token else "without a token"

    @property
    def how_to_log_in(self) -> str:
        """What to do about a missing token."""
        login = ", or log in with `hf auth login`" if self.endpoint == OFFICIAL_ENDPOINT else ""
        return f"no token was given: give one (token=… in Python, --token-file FILE on the command line){login}"


@contextlib.contextmanager
def hub_errors(what: str, caller: Caller, folder: Path) -> Iterator[None]:
    """Turns every failure inside the block into a `RefusedError` that says what was being done. Errors of this package, of the
    disk and of paths on it (in `folder`) stay what they are."""
    try:
        with disk_space_errors(folder):
            yield
    except M3DTError:
        raise
    except Exception as error:  # huggingface_hub, httpx and hf_xet raise exceptions of many kinds
        if isinstance(error, OSError) and error.filename is not None:
            with path_errors(folder):
                raise
        raise refused(error, what, caller) from None


def refused(error: BaseException, what: str, caller: Caller) -> RefusedError:
    """The error to raise instead of `error`. what: what was being done.

    The text of `error` is not for showing, so raise this one `from None`.
    """
    missing = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
    return RefusedError(f"{what}: {explain(error, caller)}", status_of(error), is_transient(error), missing, _wait_asked(error))


def explain(error: BaseException, caller: Caller) -> str:
    """A failure in words."""
    where = shown_endpoint(caller.endpoint)
    if isinstance(error, GatedRepoError):
        return f"it is gated; ask for access on its page and pass the token of an account that has it ({caller.given})"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no folder {caller.repo_id} here, and the Hub at {where} has no such repository that can be seen "
            f"{caller.given}"
        )
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline (HF_HUB_OFFLINE), and it is not in the cache"
    if isinstance(error, EntryNotFoundError):
        return "it is not there"
    if isinstance(error, StalledError | AnswerError):
        return str(error)
    if (status := status_of(error)) is not None:
        reasons = {
            401: "the token is not valid" if caller.token else caller.how_to_log_in,
            403: f"not allowed {caller.given}",
            412: "somebody else has committed",
        }
        said = redact(getattr(error, "server_message", None) or "", [caller.token])
        return f"HTTP {status}" + (f", {reasons[status]}" if status in reasons else "") + (f": {said}" if said else "")
    said = f"{type(error).__name__}: {redact(error, [caller.token])}"
    if type(error).__name__ in _UNREACHABLE:
        return f"there is no folder {caller.repo_id} here, and the Hub cannot be reached ({said})"
    return said


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of a failure; None if it is not an HTTP error."""
    if isinstance(error, RefusedError):
        return error.status
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may help: the server is busy or broken, or the connection failed."""
    if isinstance(error, RefusedError):
        return error.transient
    if isinstance(error, HfHubHTTPError):
        return status_of(error) in _TRANSIENT
    return isinstance(error, ConnectionError | TimeoutError) or _is_transport(error)


def _is_transport(error: BaseException | None) -> bool:
    # httpx's errors go by their names, because huggingface_hub may bring its own copy of httpx
    names = {base.__name__ for base in type(error).__mro__}
    return "TransportError" in names and not names & {"LocalProtocolError", "UnsupportedProtocol"}


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns. It is tried again while its failures are transient."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            pause(attempt, error)
    return call()


def pause(attempt: int, error: BaseException | None) -> None:
    """Waits before another try as long as the server asks, else 2 ** attempt seconds: 1, 2, 4, …, and half a second for -1."""
    asked = _wait_asked(error)
    time.sleep(2.0**attempt if asked is None else min(asked, _LONGEST_WAIT))


def _wait_asked(error: BaseException | None) -> float | None:
    if isinstance(error, RefusedError):
        return error.wait
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if str(asked).isdecimal() else None
