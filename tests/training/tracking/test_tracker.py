"""What stands between training and a tracker: errors are said once, and nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from small_trackers import Broken, Notebook

from m3dt_agent.training import TrackedRun
from m3dt_agent.training.tracking import Guarded
from m3dt_agent.training.tracking import tracker as tracking


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_what_fails_is_said_once_and_left_out(at: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = Broken(at)
    guarded = Guarded(broken)
    for _ in range(2):
        guarded.start(TrackedRun("backbone", "bank", tmp_path, {}))
        guarded.log({"loss": 1.0}, 1)
        guarded.log({"loss": 1.0}, 2)
        guarded.finish({})
        wait_for(lambda: not any(thread.name == "tracker Broken" for thread in threading.enumerate()))
    said = capsys.readouterr().err
    assert said == "tracker Broken is left out from here on, training goes on: RuntimeError: out of order\n"
    assert broken.calls == {"start": 1, "log": 2, "finish": 4}[at]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_nobody_waits_for_a_slow_tracker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "WAITING", 5)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.05)
    go_on = threading.Event()

    class Slow(Notebook):
        def log(self, values: Mapping[str, float], step: int) -> None:
            go_on.wait()
            super().log(values, step)

    behind, late = Slow(), Slow()
    for tracker, reports in ((behind, 20), (late, 1)):
        guarded = Guarded(tracker)
        guarded.start(TrackedRun("backbone", "bank", tmp_path, {}))
        for step in range(reports):
            guarded.log({}, step)
        guarded.finish({})
    go_on.set()
    wait_for(lambda: not any(thread.name == "tracker Slow" for thread in threading.enumerate()))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[-1] for line in said] == [
        "it is too slow, 5 reports wait for it",
        "it did not finish within 0 s",
    ]
    assert len(behind.of("log")) <= 1
    assert not behind.of("finish")
