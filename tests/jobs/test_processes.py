"""Jobs in processes of this machine: every result, retries that end, errors that name their job, nothing left running."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

import psutil
import pytest
from job_examples import Square, attempts

from m3dt_agent.errors import ConfigError, M3DTError
from m3dt_agent.jobs import LocalProcesses, RayCluster, run_jobs, shard_of


@pytest.mark.parametrize("workers", [0, 1, 3, None])
def test_every_job_gives_its_result_once(tmp_path, workers):
    jobs = [Square(i, tmp_path) for i in range(7)]
    found = list(run_jobs(jobs, LocalProcesses(workers)))
    assert sorted(found) == [(i, i * i) for i in range(7)]
    assert [attempts(tmp_path, i) for i in range(7)] == [1] * 7
    assert list(run_jobs([], LocalProcesses(workers))) == []


@pytest.mark.parametrize("trouble", ["foreign", "death"])
def test_what_may_pass_is_tried_again(tmp_path, trouble, caplog):
    jobs = [Square(0, tmp_path), Square(1, tmp_path, trouble, times=2), Square(2, tmp_path)]
    assert sorted(run_jobs(jobs, LocalProcesses(1, retries=2))) == [(0, 0), (1, 1), (2, 4)]
    assert [attempts(tmp_path, i) for i in range(3)] == [1, 3, 1]
    assert [record.args[1:] for record in caplog.records] == [(1, 2), (2, 2)]
    assert "square of 1" in caplog.text


@pytest.mark.parametrize(
    ("trouble", "error", "message", "tries"),
    [
        ("error", ConfigError, "^square of 1: no such square$", 1),
        ("foreign", M3DTError, "(?s)^square of 1 failed:.*in __call__.*ZeroDivisionError: squares of zero", 3),
        ("death", M3DTError, r"^square of 1: the worker died \(exit code -9\)$", 3),
    ],
)
def test_what_fails_for_good_is_named_and_what_was_done_is_kept(tmp_path, trouble, error, message, tries):
    done = []
    with pytest.raises(error, match=message):
        done.extend(run_jobs([Square(0, tmp_path), Square(1, tmp_path, trouble)], LocalProcesses(1, retries=2)))
    assert done == [(0, 0)]
    assert attempts(tmp_path, 1) == tries


def test_workers_killed_from_outside(tmp_path):
    jobs = [Square(i, tmp_path, seconds=0.2) for i in range(20)]
    ended, randomness = threading.Event(), random.Random(0)

    def kill() -> None:
        kills = 0
        while not ended.wait(randomness.uniform(0.3, 0.6)) and kills < 4:
            begun = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
            workers = [child for child in psutil.Process().children() if str(child.pid) in begun]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(randomness.choice(workers).pid, signal.SIGKILL)
                kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert sorted(run_jobs(jobs, LocalProcesses(2, retries=10))) == [(i, i * i) for i in range(20)]
    finally:
        ended.set()
        killer.join()
    assert sum(attempts(tmp_path, i) for i in range(20)) > 20


def test_nothing_runs_on_when_results_are_not_wanted_any_more(tmp_path):
    results = run_jobs([Square(0, tmp_path), Square(1, tmp_path, seconds=60)], LocalProcesses(2))
    assert next(results) == (0, 0)
    while not attempts(tmp_path, 1):
        time.sleep(0.01)
    pid = int((tmp_path / "1").read_text())
    results.close()
    assert not psutil.pid_exists(pid)


def test_settings_that_cannot_be():
    for wrong in ({"workers": -1}, {"retries": -1}):
        with pytest.raises(ConfigError, match=r"must be .*>= 0; got -1"):
            LocalProcesses(**wrong)
    for wrong in ({"cpus_per_job": 0}, {"gpus_per_job": -0.5}, {"retries": -1}):
        with pytest.raises(ConfigError, match="got"):
            RayCluster(**wrong)


def test_shards_of_a_job_array():
    assert [shard_of(range(5), (i, 2)) for i in (1, 2)] == [[0, 2, 4], [1, 3]]
    assert shard_of("ab", (3, 3)) == []
    for shard in ((0, 1), (3, 2), (-1, 2)):
        with pytest.raises(ConfigError, match="1 <= I <= N"):
            shard_of("ab", shard)


def test_stopped_workers_are_killed_when_results_are_not_wanted_any_more(tmp_path):
    results = run_jobs([Square(0, tmp_path), *(Square(i, tmp_path, seconds=60) for i in (1, 2, 3))], LocalProcesses(4))
    assert next(results) == (0, 0)
    while not all(attempts(tmp_path, i) for i in (1, 2, 3)):
        time.sleep(0.01)
    pids = [int((tmp_path / str(i)).read_text()) for i in (1, 2, 3)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 10  # for all of them together
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="a terminal's Ctrl-C")
def test_workers_do_not_hear_ctrl_c(tmp_path):
    """A terminal sends it to all processes of the group, also to those that still import."""
    results = run_jobs([Square(0, tmp_path), Square(1, tmp_path, seconds=1)], LocalProcesses(2))
    assert next(results) == (0, 0)
    children = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(children) == 2
    for child in children:
        child.send_signal(signal.SIGINT)
    assert list(results) == [(1, 1)]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
