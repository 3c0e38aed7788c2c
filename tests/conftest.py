"""Shared by all tests: one CPU thread per process, no network but loopback, no leftovers in the user's folders."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    return GOLDEN


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests may only reach loopback; got {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
