"""Shared by all tests: one CPU thread per process, no network but loopback, no leftovers in the user's folders."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits by spinning takes the core of the one it waits for
HF_HOME = tempfile.TemporaryDirectory(prefix="m3dt-hf-home-")  # removed when the process ends
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[name]  # huggingface_hub reads the user's tokens, caches and endpoint when it is imported
os.environ |= {"HF_HOME": HF_HOME.name, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ["HF_XET_CLIENT_RETRY_BASE_DELAY"] = "10ms"  # hf_xet waits up to 150 s for its token by default

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, here and in children, where a shell started us with `&`

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # however busy it is
settings.load_profile("any machine")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    return GOLDEN


def _is_own(host: str) -> bool:
    """Whether `host` is an address of this machine, which a Ray cluster on it listens on: only those can be bound to."""
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
        return True


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost") and not _is_own(host):
            raise OSError(f"tests may only reach this machine; got {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of `m3dt` in this process: exit code, stdout, stderr."""
    from m3dt_agent.cli import main

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task of one's own is registered, here or in child processes; what a test registers is forgotten after it."""
    from m3dt_agent.tasks import registry

    monkeypatch.setattr(registry, "_own", {})
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setenv(registry.TASKS_VARIABLE, "")
