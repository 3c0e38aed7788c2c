"""What the machine offers: usable cores, progress bars, and the diagnosis that `m3dt doctor` prints."""

from __future__ import annotations

import os
import sys

import pytest

from m3dt_agent.machine import duration, shows_progress, usable_cores


def test_usable_cores_are_those_that_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert usable_cores() == 3


def test_usable_cores_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_terminals_unless_told_otherwise(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert shows_progress(None) is terminal
    assert shows_progress(True) is True
    assert shows_progress(False) is False


def test_times_read_well() -> None:
    assert [duration(s) for s in (5, 119, 120, 7200, 200_000)] == ["5 s", "119 s", "2 min", "2.0 h", "2.3 days"]
