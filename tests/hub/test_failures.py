"""What is tried again, how long is waited, and what a person is told."""

from __future__ import annotations

import pytest

from m3dt_agent.errors import ConfigError, HubError
from m3dt_agent.hub.failures import ATTEMPTS, Caller, RefusedError, StalledError, is_transient, patiently, pause, refused

CALLER = Caller("https://mirror.example", "runs/bakn", "hf_alice")


class TransportError(Exception):
    """Of the name that httpx gives its own."""


class ConnectError(TransportError):
    pass


class LocalProtocolError(TransportError):
    pass


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(), True),
        (StalledError("slow"), True),
        (ConnectError(), True),
        (LocalProtocolError(), False),
        (RefusedError("x", transient=True), True),
        (RefusedError("x", 404), False),
        (ValueError(), False),
        (ConfigError("x"), False),
        (None, False),
    ],
)
def test_what_is_worth_another_try(error: Exception | None, again: bool) -> None:
    assert is_transient(error) == again


def test_a_call_is_repeated_while_that_may_help(waits: list[float]) -> None:
    left = [ConnectionResetError(), TimeoutError(), ConnectionResetError()]

    def call() -> int:
        if left:
            raise left.pop()
        return 7

    assert patiently(call) == 7
    assert waits == [1.0, 2.0, 4.0]
    left[:] = [ConnectionResetError("last"), *[ConnectionResetError()] * (ATTEMPTS - 1)]
    with pytest.raises(ConnectionResetError, match="last"):
        patiently(call)
    left[:] = [ValueError()]
    with pytest.raises(ValueError):  # noqa: PT011 - any
        patiently(call)


@pytest.mark.parametrize(("asked", "waited"), [(None, 8.0), (7.0, 7.0), (1e9, 60.0)])
def test_a_server_is_obeyed_up_to_a_minute(waits: list[float], asked: float | None, waited: float) -> None:
    pause(3, RefusedError("busy", 429, True, False, asked))
    assert waits == [waited]


def test_a_hub_that_cannot_be_reached_may_have_been_a_folder() -> None:
    error = refused(ConnectError("[Errno 111] http://a:b@mirror.example"), "model runs/bakn", CALLER)
    assert isinstance(error, HubError)
    assert str(error) == (
        "model runs/bakn: there is no folder runs/bakn here, and the Hub cannot be reached (ConnectError: [Errno 111] …)"
    )
    assert error.transient
    assert (error.status, error.no_repository) == (None, False)


def test_text_of_others_is_redacted() -> None:
    error = refused(ValueError("token hf_alice\x1b[2J\nat https://x/y?signature=1"), "it", CALLER)
    assert str(error) == "it: ValueError: token (token)\\x1b[2J\\nat …"
