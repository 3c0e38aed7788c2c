"""Which repository is meant, where requests go, and with which token: all are checked when they are given, because a token must
reach no other place and no message."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants

from m3dt_agent.errors import ConfigError
from m3dt_agent.hub.redaction import shown_endpoint

OFFICIAL_ENDPOINT = "https://huggingface.co"
"""The only endpoint that receives the login kept by huggingface_hub."""
_REPO_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # huggingface_hub's rule, with a namespace
_TOKEN = re.compile(r"[!-~]+")
_PORTS = {"http": 80, "https": 443}


def is_repo_id(name: str | Path) -> bool:
    """Whether `name` has the form of an id on the Hub (`namespace/name`) and no folder of that name exists here."""
    return isinstance(name, str) and _REPO_ID.fullmatch(name) is not None and not Path(name).is_dir()


def checked_endpoint(endpoint: str | None) -> str:
    """The address of a Hub, without a slash at its end. None: HF_ENDPOINT, by default huggingface.co.

    Raises:
        ConfigError: not an address of the form https://host; the message shows no password.
    """
    if not isinstance(endpoint, str | None):
        raise ConfigError(f"endpoint must be a string or None; got a {type(endpoint).__name__}")
    found = (endpoint or constants.ENDPOINT).strip().rstrip("/")
    try:
        origin_of(found)
        fine = urlsplit(found).scheme in _PORTS and not urlsplit(found).query and found.isprintable() and " " not in found
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(f"endpoint must be an address such as {OFFICIAL_ENDPOINT}; got {_shown(found)}")
    return found


def _shown(endpoint: str) -> str:
    try:
        return repr(shown_endpoint(endpoint)) if urlsplit(endpoint).scheme in _PORTS else "something else"
    except ValueError:
        return "something else"


def checked_token(token: str | None, endpoint: str) -> str | None:
    """The token to send to `endpoint`, without spaces around it. None: the login that huggingface_hub keeps if the endpoint is
    huggingface.co, else none.

    Raises:
        ConfigError: it holds characters that no token has; the message does not show it.
    """
    if not isinstance(token, str | None):
        raise ConfigError(f"token must be a string or None; got a {type(token).__name__}")
    token = (token or "").strip()
    given = bool(token)
    if not given and endpoint == OFFICIAL_ENDPOINT:
        token = (huggingface_hub.get_token() or "").strip()
    if not token:
        return None
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"the token {'given' if given else 'that huggingface_hub keeps'} holds white space or other characters that no "
            "token has; copy it once more"
        )
    return token


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: whoever shares them is the same server.

    Raises:
        ValueError: no host, or a port that is none.
    """
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("an address without a host")
    return parts.scheme.lower(), parts.hostname.lower(), parts.port or _PORTS.get(parts.scheme.lower(), 0)
