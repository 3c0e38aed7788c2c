"""What may be shown of what a Hub and its libraries say: no token, password or signature, and nothing that steers a terminal.

redact       for error messages: no address at all
RedactedLog  for the log lines of huggingface_hub and httpx: addresses without passwords and signatures
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from m3dt_agent.system.text import visible, visible_lines

HIDDEN = "(token)"
"""What stands in the place of a token."""
_LONGEST = 300  # characters of a message; a server may send megabytes
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]*@", re.IGNORECASE)
_SIGNATURE = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#]*)[?#][^\s\"']*", re.IGNORECASE)
_TOKEN = re.compile(r"(Bearer\s+)[^\s'\"]+|hf_[A-Za-z0-9]{16,}|(?:api_org|hf_oauth)_[A-Za-z0-9._-]{16,}", re.IGNORECASE)
_LOGGERS = ("huggingface_hub", "httpx2", "httpx")


def redact(text: object, secrets: Iterable[str | None] = ()) -> str:
    """`text` for a message: on one line, short, with an ellipsis for every address, and without `secrets` and whatever else
    looks like a token."""
    return visible(_ADDRESS.sub("…", _without_tokens(str(text), secrets)), longest=_LONGEST)


def shown_endpoint(endpoint: str) -> str:
    """The address of a Hub for a message: scheme and host, without a user's name, a password or a query."""
    parts = urlsplit(endpoint)
    return visible(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", longest=_LONGEST)


def _without_tokens(text: str, secrets: Iterable[str | None] = ()) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return _TOKEN.sub(lambda found: (found[1] or "") + HIDDEN, text)


class RedactedLog(logging.Filter):
    """Rewrites every record of the libraries that talk to the Hub, before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass, rewritten where it holds something that must not be shown."""
        said = record.getMessage()
        shown = visible_lines(_SIGNATURE.sub(r"\1?…", _PASSWORD.sub(r"\1", _without_tokens(said))))
        if shown != said:
            record.msg, record.args = shown, ()
        return True


_REDACTED_LOG = RedactedLog()


def redact_logs() -> None:
    """Puts `RedactedLog` before the handlers of every logger of those libraries that exists; calling it again is cheap."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.split(".")[0] in _LOGGERS and _REDACTED_LOG not in logger.filters:
            logger.addFilter(_REDACTED_LOG)
