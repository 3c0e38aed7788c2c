"""What the machine offers: usable cores, progress bars, and the diagnosis that `m3dt doctor` prints."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

from m3dt_agent.errors import ConfigError
from m3dt_agent.system.machine import duration, shows_progress, torch_device, usable_cores, usable_devices


def test_usable_cores_are_those_that_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert usable_cores() == 3


def test_usable_cores_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def with_gpus(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int) -> None:
    """Lets torch say that it was built for GPUs of a kind (None: for none) and that `count` of them are there."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None if kind is None else torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


NONE_HERE = ["gpu", "", "cuda:-1", "cuda:x", "meta", "cpu:1", "CUDA", " cuda", None, 0, b"cpu", ["cpu"], torch.device("meta")]


@pytest.mark.parametrize(
    ("kind", "count", "usable", "unusable"),
    [
        (None, 0, ("cpu",), ["cuda", "cuda:0", "cuda:7", "mps", "xpu", torch.device("cuda")]),
        ("cuda", 0, ("cpu",), ["cuda", "cuda:0"]),  # a build for GPUs on a machine without one
        ("cuda", 2, ("cpu", "cuda", "cuda:0", "cuda:1"), ["cuda:2", "cuda:7", "mps", "xpu:0", torch.device("cuda:2")]),
        ("mps", 1, ("cpu", "mps", "mps:0"), ["cuda", "mps:1"]),
    ],
)
def test_a_device_is_one_that_torch_can_use_here(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int, usable: tuple[str, ...], unusable: list[Any]
) -> None:
    with_gpus(monkeypatch, kind, count)
    assert usable_devices() == usable
    for name in (*usable, "cpu:0"):
        assert torch_device(name) == torch_device(torch.device(name)) == torch.device(name)
    for wrong in (*unusable, *NONE_HERE):
        with pytest.raises(ConfigError) as caught:
            torch_device(wrong)
        assert f"device must be one of {', '.join(usable)} (what torch can use here); got {str(wrong)!r}" in str(caught.value)


def test_what_torch_computes_on_here_is_usable() -> None:
    assert "cpu" in usable_devices()
    for name in usable_devices():
        assert float(torch.ones((), device=torch_device(name)) + 1) == 2.0


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_terminals_unless_told_otherwise(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert shows_progress(None) is terminal
    assert shows_progress(True) is True
    assert shows_progress(False) is False


def test_times_read_well() -> None:
    assert [duration(s) for s in (5, 119, 120, 7200, 200_000)] == ["5 s", "119 s", "2 min", "2.0 h", "2.3 days"]
