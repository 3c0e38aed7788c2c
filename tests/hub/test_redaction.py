"""Tokens, passwords, signatures and escape codes: in no message, no log line and no traceback, whoever put them there."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import ConfigError, HubError, M3DTError
from m3dt_agent.hub import endpoints
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.hub.client import HubRepo
from m3dt_agent.hub.redaction import redact, redact_logs, shown_endpoint

REPO, ALICE = "alice/bank", "hf_alice"
LONG = "hf_" + "aB3" * 12
ESCAPES = "\x1b]8;;http://evil\x07click\x1b[2J\r\nroot@host:~# \u202etxt"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Everything that was logged at any level, by the libraries too."""
    for name in ("huggingface_hub", "httpx2"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level(logging.DEBUG, logger=name)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def failure(attempt: Callable[[], object]) -> str:
    """The message and the whole traceback of a failure, causes included."""
    with pytest.raises(M3DTError) as found:
        attempt()
    return str(found.value) + "".join(traceback.format_exception(found.value))


TOKENS = ["hf_x y" + LONG, f"{LONG}\n{LONG}", f"{LONG}\x00", f"{LONG}\x1b[31m", "hf_é" + LONG]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_that_cannot_be_is_refused_and_not_shown(lfs_hub: Hub, bank: ExpertBank, token: str) -> None:
    for attempt in (lambda: push_bank(bank, REPO, token=token), lambda: pull_bank(REPO, token=token)):
        with pytest.raises(ConfigError, match="token given holds white space or other characters"):
            attempt()
        shown = failure(attempt)
        assert LONG not in shown
        assert not lfs_hub.count("POST")


@pytest.mark.parametrize("token", [f"{ALICE}\n", f" {ALICE} ", f"\t{ALICE}\r\n"])
def test_spaces_around_a_token_are_no_part_of_it(lfs_hub: Hub, bank: ExpertBank, token: str) -> None:
    push_bank(bank, REPO, token=token)
    assert {request.headers.get("authorization") for request in lfs_hub.seen("/api/")} == {f"Bearer {ALICE}"}


def test_values_of_another_type() -> None:
    for options in ({"token": True}, {"token": b"hf_x"}, {"endpoint": 7}):
        with pytest.raises(ConfigError, match="must be a string or None"):
            HubRepo(REPO, "model", **options)  # type: ignore[arg-type]
    for revision in (7, "\ud800"):
        with pytest.raises(ConfigError, match="revision must be"):
            pull_bank(REPO, revision)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="revision"):
        HubRepo(REPO, "model").look("\ud800")


def test_the_kept_login_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_a b{LONG}")
    shown = failure(lambda: HubRepo(REPO, "model", endpoint=endpoints.OFFICIAL_ENDPOINT))
    assert "that huggingface_hub keeps" in shown
    assert LONG not in shown


@pytest.mark.parametrize(
    "endpoint",
    ["ftp://alice:secret@host", "alice:secret@host", "https://", "https://h:x:secret@", "https://host/?a=secret", "http://a\n"],
)
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    if endpoint.strip() == endpoint:
        shown = failure(lambda: HubRepo(REPO, "model", endpoint=endpoint))
        assert "endpoint must be an address" in shown
        assert "secret" not in shown


def test_a_password_in_the_endpoint_is_not_shown(lfs_hub: Hub, bank: ExpertBank, said: Callable[[], str]) -> None:
    endpoint = lfs_hub.endpoint.replace("://", "://alice:pass-word@")
    lfs_hub.fail("GET /api/models/alice/other", 503, times=None)
    shown = failure(lambda: pull_bank(REPO, endpoint=endpoint)) + failure(lambda: pull_bank("alice/other", endpoint=endpoint))
    nobody = endpoint.rpartition(":")[0] + ":9"
    shown += failure(lambda: pull_bank(REPO, endpoint=nobody))
    assert "HTTP 401" in shown
    assert "HTTP 503" in shown
    assert "cannot be reached" in shown
    assert "pass-word" not in shown + said()


@pytest.mark.parametrize("step", ["GET /api/models/alice/bank[?]", "POST .*/create", "POST .*/commit/", "POST .*/tag/"])
@pytest.mark.parametrize("status", [400, 401, 403, 418, 500])
def test_what_a_server_says_is_shown_redacted(
    lfs_hub: Hub, bank: ExpertBank, said: Callable[[], str], step: str, status: int
) -> None:
    message = f"{ESCAPES} {ALICE} {LONG} http://a:pass-word@host/x?X-Amz-Signature=5ec2e7 " + "long " * 20_000

    headers = {"X-HF-Warning": f"topic-{status}{len(step)}; \x1b[2J{LONG}", "Content-Type": "text/plain"}
    lfs_hub.fail(step, status, times=None, headers=headers, body=message.encode())
    shown = failure(lambda: push_bank(bank, REPO, token=ALICE))
    assert f"HTTP {status}" in shown
    for secret in (ALICE, LONG, "pass-word", "5ec2e7", "\x1b", "\r", "\u202e"):
        assert secret not in shown
        assert secret not in said()
    assert len(shown) < 20_000


def test_signatures_of_addresses_are_not_logged(
    lfs_hub: Hub, bank: ExpertBank, said: Callable[[], str], tmp_path: Path
) -> None:
    push_bank(bank, REPO, token=ALICE)
    lfs_hub.drop("GET /_cdn/")
    lfs_hub.fail("GET /_cdn/", 503)
    pull_bank(REPO, cache_dir=tmp_path / "cache")
    assert "/_cdn/" in said()
    assert "signature=1" not in said()


def test_a_push_without_a_token_says_so(lfs_hub: Hub, bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"no token was given: give one \(token=… in Python, --token-file FILE") as found:
        push_bank(bank, REPO)
    assert "not valid" not in str(found.value)
    assert "hf auth login" not in str(found.value)  # that token goes to huggingface.co only
    monkeypatch.setattr(endpoints, "OFFICIAL_ENDPOINT", lfs_hub.endpoint)
    monkeypatch.setattr("m3dt_agent.hub.failures.OFFICIAL_ENDPOINT", lfs_hub.endpoint)
    with pytest.raises(HubError, match="or log in with `hf auth login`"):
        push_bank(bank, REPO)
    with pytest.raises(HubError, match="the token is not valid"):
        push_bank(bank, REPO, token="hf_mallory")


def test_a_failure_travels_between_processes(lfs_hub: Hub) -> None:
    with pytest.raises(HubError) as found:
        pull_bank(REPO)
    copy = pickle.loads(pickle.dumps(found.value))
    assert (str(copy), copy.no_repository, copy.status) == (str(found.value), True, 401)


def test_the_parts_of_a_message() -> None:
    assert redact(f"Bearer {ALICE}") == "Bearer (token)"
    assert redact(f"it is {LONG}, I say") == "it is (token), I say"
    assert redact("use hf_hub_download and hf_xet") == "use hf_hub_download and hf_xet"
    assert redact("see HTTPS://a:b@c/d?e=f now") == "see … now"
    assert redact("a\x1b[31m\nb", [None, ""]) == "a\\x1b[31m\\nb"
    assert shown_endpoint("https://me:secret@mirror.example:8443/hub?x=1") == "https://mirror.example:8443/hub"


def test_log_lines_of_the_libraries_keep_what_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("huggingface_hub.file_download")
    redact_logs()
    redact_logs()
    assert len([one for one in logger.filters if type(one).__name__ == "RedactedLog"]) == 1
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.addHandler(caplog.handler)
        logger.info("GET %s %d\nthen\x1b[2J", "https://u:p@host/a/b?sig=1#f", 200)
        logger.removeHandler(caplog.handler)
    assert caplog.records[-1].getMessage() == "GET https://host/a/b?… 200\nthen\\x1b[2J"
