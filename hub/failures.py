"""Failures of the Hub: which of them are worth another try, how long to wait, and what to tell a person.

huggingface_hub, httpx and hf_xet raise exceptions of many kinds. Messages never contain an address, which may carry a
signature.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

T = TypeVar("T")

ATTEMPTS = 4
"""Tries of a request that huggingface_hub itself does not repeat; the waits between them are 1, 2 and 4 seconds."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0  # seconds; a longer Retry-After of the server is cut to this


def explain(error: BaseException, endpoint: str, has_token: bool) -> str:
    """A failure in words."""
    given = "with the token given" if has_token else "without a token"
    if isinstance(error, GatedRepoError):
        return f"it is gated; ask for access on its page and pass the token of an account that has it ({given})"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository at {endpoint}, or it is private and cannot be seen {given}"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline (HF_HUB_OFFLINE), and it is not in the cache"
    if isinstance(error, EntryNotFoundError) and error.__cause__ is not None:
        return explain(error.__cause__, endpoint, has_token)  # its own message is only "not in the cache either"
    if (status := status_of(error)) is not None:
        reason = {401: "the token is not valid", 403: f"not allowed {given}", 412: "somebody else has committed"}
        said = getattr(error, "server_message", None)
        return f"HTTP {status}" + (f", {reason[status]}" if status in reason else "") + (f": {said}" if said else "")
    return f"{type(error).__name__}: {without_addresses(str(error))}"


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of a failure; None if it is not an HTTP error."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may help: the server is busy or broken, or the connection failed."""
    if isinstance(error, HfHubHTTPError):
        return status_of(error) in _TRANSIENT
    if isinstance(error, EntryNotFoundError):  # "not in the cache either"
        return is_transient(error.__cause__)
    names = [base.__name__ for base in type(error).__mro__]
    # httpx's error goes by its name, because huggingface_hub may bring its own copy of httpx
    return isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names


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
    asked: Any = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    time.sleep(min(float(asked), _LONGEST_WAIT) if str(asked).isdecimal() else 2.0**attempt)


def without_addresses(text: str) -> str:
    """`text` with an ellipsis for every address."""
    return re.sub(r"https?://\S+", "…", text)
