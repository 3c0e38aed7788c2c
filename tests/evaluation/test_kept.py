"""Rows on disk: nothing that was played is lost, whoever is killed; nothing of others is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from contracts import random_bank, random_datasets

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, DatasetError, PathError, UnwrittenRowsError
from m3dt_agent.evaluation import AgentPolicy, check_rows, evaluate, evaluate_in_jobs, kept
from m3dt_agent.evaluation.schedule import Episode
from m3dt_agent.jobs import LocalProcesses
from m3dt_agent.scores.rows import EpisodeResult, read_rows, write_rows
from m3dt_agent.tasks import TASKS, TaskSpec, get

pytest.importorskip("mujoco")

NAMES = ("cheetah-vel-3", "ant-dir-0", "cheetah-vel-1")
CONFIG = EvalConfig(episodes=2, slots=2, workers=0)
OF_BANK = ("cheetah-vel-3", "ant-dir-0", "cheetah-vel-1", "ant-dir-5", "ant-dir-7")  # two parts of a deterministic evaluation
DETERMINISTIC = EvalConfig(episodes=1, slots=4, workers=0, deterministic=True)


class Still:
    """Does nothing, or whatever `then` does at the call of this number."""

    name, bank_hash = "still", "abc"

    def __init__(self, at: int | None = None, then: Callable[[], object] | None = None) -> None:
        self.calls, self.at, self.then = 0, at, then
        self.played: list[tuple[str, int]] = []

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self.played += [(task.name, seed) for task, (seed,) in zip(tasks, seeds, strict=True)]

    def act(self, obs: Any, **told: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            assert self.then is not None
            self.then()
        return np.zeros((len(obs), 8), np.float32)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EpisodeResult], bytes]:
    """The rows of an evaluation that nobody interrupted, and its file."""
    path = tmp_path_factory.mktemp("whole") / "rows.jsonl"
    return evaluate(Still(), NAMES, CONFIG, rows=path), path.read_bytes()


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    folder = tmp_path_factory.mktemp("bank")
    data: TaskDatasets = random_datasets(folder / "datasets", OF_BANK, episodes=5, length=15)
    return random_bank(folder / "bank", data, ModelConfig.preset("tiny"))


def test_the_file_has_the_rows_in_the_order_of_the_table(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    rows, content = whole
    assert [(row.task, row.seed) for row in rows] == [(name, 10_000 + k) for name in NAMES for k in (0, 1)]
    assert rows == evaluate(Still(), NAMES, CONFIG)
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert read_rows(tmp_path / "rows.jsonl") == sorted(rows, key=lambda row: row.order)
    assert evaluate(Still(), reversed(NAMES), CONFIG, rows=tmp_path / "other.jsonl") != rows
    assert (tmp_path / "other.jsonl").read_bytes() == content


@pytest.mark.parametrize("at", [1, 250, 401])
def test_an_interrupted_evaluation_continues(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path, at: int) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt) as found:
        evaluate(Still(at, interrupt), NAMES, CONFIG, rows=path)
    kept = read_rows(path) if path.exists() else []
    assert found.value.__notes__ == [f"{len(kept)} of 6 episodes are in {path}; run the same again to continue from there"]
    assert bool(kept) == (at > 1)
    policy = Still()
    assert (evaluate(policy, NAMES, CONFIG, rows=path), path.read_bytes()) == whole
    assert len(policy.played) == 6 - len(kept)
    assert not {(row.task, row.seed) for row in kept} & set(policy.played)
    again = Still()
    assert (evaluate(again, NAMES, CONFIG, rows=path), again.played) == (whole[0], [])
    assert os.listdir(path.parent) == ["rows.jsonl"]


def test_a_ctrl_c_on_any_line_counts_what_the_file_has(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    rows, content = whole
    episodes = [Episode(get(row.task), row.seed) for row in rows]
    protocol = kept.Protocol("still", "abc", rows[0].stop_on_success, rows[0].settings, None)
    for line in itertools.count(1):
        path, left = tmp_path / f"{line}.jsonl", line

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != kept.__file__:
                return None
            left -= event == "line"
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        try:
            with kept.keep_rows(path, protocol, episodes) as there:
                there.add(rows[0])
                sys.settrace(trace)
                there.add(rows[1])
                sys.settrace(before)
            break
        except KeyboardInterrupt as error:
            sys.settrace(before)
            in_file, notes = len(read_rows(path)), error.__notes__
            assert notes[0].startswith(f"{in_file} of 6 episodes are in "), line
            with kept.keep_rows(path, protocol, episodes) as there:
                assert there.ended == in_file
                for row in rows:
                    there.add(row)
                assert there.finish() == rows
            assert path.read_bytes() == content
    assert line > 10


EVALUATION = """
import sys
from m3dt_agent.config import EvalConfig
from m3dt_agent.evaluation import evaluate
evaluate(sys.argv[1], sys.argv[3:], EvalConfig(episodes=1, slots=4, workers=int(sys.argv[2])), rows="rows.jsonl")
"""


def start(folder: Path, level: str, workers: int, tasks: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", EVALUATION, level, str(workers), *tasks], cwd=folder)


def rows_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_evaluation_continues(tmp_path: Path) -> None:
    tasks, path = [task.name for task in TASKS if task.domain == "cheetah-vel"][:12], tmp_path / "rows.jsonl"
    running = start(tmp_path, "random", 0, tasks)
    while not rows_in(path):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert 0 < rows_in(path) < 12
    config = EvalConfig(episodes=1, slots=4, workers=0)
    assert evaluate("random", tasks, config, rows=path) == evaluate("random", tasks, config, rows=tmp_path / "whole.jsonl")
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_tasks_killed_ten_times_and_continued(tmp_path: Path) -> None:
    tasks = [task.name for task in TASKS]
    randomness, path, counts = random.Random(0), tmp_path / "rows.jsonl", [0]
    for _ in range(10):
        running = start(tmp_path, "random", 2, tasks)
        while rows_in(path) == counts[-1] and running.poll() is None:  # so that every run gets somewhere
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(randomness.uniform(0.0, 1.0))
        running.kill()
        running.wait()
        counts.append(rows_in(path))
    print(f"rows in the file after each kill: {counts[1:]}")
    assert counts == sorted(counts)
    assert counts[-1] < 160
    assert start(tmp_path, "random", 2, tasks).wait() == 0
    expected = evaluate("random", tasks, EvalConfig(episodes=1, slots=32, workers=2), rows=tmp_path / "whole.jsonl")
    assert len(expected) == 160
    assert read_rows(tmp_path / "rows.jsonl") == expected
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_deterministic_agent_continues_to_the_last_bit(
    bank: ExpertBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tasks whose contacts amplify a last bit to half of a return, with a file that lacks a row of the first part."""
    monkeypatch.setattr("m3dt_agent.evaluation.rollout._DETERMINISTIC_THREADS", 1)  # two wait for each other on a busy machine
    agent = M3DTAgent.load(bank.path)
    whole = evaluate(agent, OF_BANK, DETERMINISTIC)
    path = write_rows(tmp_path / "rows.jsonl", [*whole[:2], *whole[3:]])
    assert evaluate(agent, OF_BANK, DETERMINISTIC, rows=path) == whole
    assert whole[0].settings == {"experts": "mixture", "rtg_mode": "rewards", "precision": "float32"}


def test_more_episodes_and_other_tasks_join_the_file(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for names, episodes in ((NAMES[:1], 1), (NAMES[1:], 2), (NAMES[:2], 2)):
        rows = evaluate(Still(), names, dataclasses.replace(CONFIG, episodes=episodes), rows=path)
        assert [(row.task, row.seed) for row in rows] == [(name, 10_000 + k) for name in names for k in range(episodes)]
    assert path.read_bytes() == whole[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bank_hash": "def"}, "bank_hash 'def' there, 'abc' here"),
        ({"policy": "other"}, "policy 'other' there, 'still' here"),
        ({"stop_on_success": True}, "stop_on_success True there, False here"),
        ({"versions": {"mujoco": "2.0"}}, "version of dm_control None there"),
    ],
)
def test_rows_of_another_evaluation_are_refused_and_left(
    whole: tuple[list[EpisodeResult], bytes], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [whole[0][0], dataclasses.replace(whole[0][1], **change)])
    before, policy = path.read_bytes(), Still()
    for attempt in (lambda: evaluate(policy, NAMES, CONFIG, rows=path), lambda: check_rows(path, policy, CONFIG)):
        with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 2 is a row of another evaluation: {told}.*left as it is"):
            attempt()
    assert (path.read_bytes(), policy.played) == (before, [])


def test_an_agent_that_acts_otherwise_is_another_evaluation(bank: ExpertBank, tmp_path: Path) -> None:
    agent, path = M3DTAgent.load(bank.path), tmp_path / "rows.jsonl"
    evaluate(agent, NAMES[:1], CONFIG, rows=path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="rtg_mode 'rewards' there, 'constant' here"):
        evaluate(agent, NAMES[:1], dataclasses.replace(CONFIG, rtg_mode="constant"), rows=path)
    agent.experts = "none"
    with pytest.raises(ConfigError, match="experts 'mixture' there, 'none' here"):
        evaluate(AgentPolicy(agent, name="m3dt-mixture"), NAMES[:1], CONFIG, rows=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\n",
        b"{}\n",
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"{",
        b'{"bank_hash": "abc"}\n',
        bytes(200_000),
        b"\n",
        b"1\n2",
    ],
)
def test_a_foreign_file_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path, policy = tmp_path / "rows.jsonl", Still()
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 1.*left as it is; name another one"):
        evaluate(policy, NAMES, CONFIG, rows=path)
    assert (path.read_bytes(), policy.played, os.listdir(tmp_path)) == (content, [], ["rows.jsonl"])


def test_a_path_that_cannot_be_used_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    policy = Still()
    for name in (".", "file/rows.jsonl", "pipe", "loop", "a\0b", "x" * 300):
        with pytest.raises(PathError, match="cannot be used"):
            evaluate(policy, NAMES, CONFIG, rows=f"{tmp_path}/{name}")
    assert policy.played == []
    assert sorted(os.listdir(tmp_path)) == ["file", "loop", "pipe"]


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_last_line_that_was_cut_short_is_played_again(
    whole: tuple[list[EpisodeResult], bytes], tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole[1][:-cut])
    policy = Still()
    assert (evaluate(policy, NAMES, CONFIG, rows=path), path.read_bytes()) == whole
    assert len(policy.played) == (0 if cut == 1 else 1)  # without its line end, the row is there


def test_rows_that_contradict_each_other_are_refused(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    rows = whole[0]
    path = write_rows(tmp_path / "rows.jsonl", [*rows[:2], rows[0]])
    assert evaluate(Still(), NAMES, CONFIG, rows=path) == rows  # the same row twice is one
    assert path.read_bytes() == whole[1]
    write_rows(path, [*rows[:2], dataclasses.replace(rows[0], length=7)])
    with pytest.raises(DatasetError, match=r"line 3 contradicts an earlier row of cheetah-vel-3, seed 10000"):
        evaluate(Still(), NAMES, CONFIG, rows=path)


def test_two_at_once_are_refused_and_one_after_the_other_joins(
    whole: tuple[list[EpisodeResult], bytes], tmp_path: Path
) -> None:
    path, policy = tmp_path / "rows.jsonl", Still()
    lock = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", lock, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(ConfigError, match="is being written by another evaluation; wait for its end, or give each its own"):
            evaluate(policy, NAMES, CONFIG, rows=path)
        other.communicate(b"\n")
    assert policy.played == []

    def second() -> None:
        with pytest.raises(ConfigError, match="is being written"):
            evaluate(Still(), NAMES[2:], CONFIG, rows=path)

    evaluate(Still(250, second), NAMES[:2], CONFIG, rows=path)
    evaluate(Still(), NAMES[2:], CONFIG, rows=path)
    assert path.read_bytes() == whole[1]


def test_a_full_disk_loses_no_row(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(UnwrittenRowsError, match=r"the evaluation is done, but .*no room left.*rows\.jsonl") as found:
            evaluate(Still(), NAMES, CONFIG, rows=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert found.value.rows == whole[0]
    assert 0 < len(read_rows(path)) < 6
    assert os.listdir(tmp_path) == ["rows.jsonl"]
    policy = Still()
    assert (evaluate(policy, NAMES, CONFIG, rows=path), path.read_bytes()) == whole
    assert 0 < len(policy.played) < 6


def test_a_file_that_is_moved_away_meanwhile_comes_back(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert evaluate(Still(300, path.unlink), NAMES, CONFIG, rows=path) == whole[0]
    assert path.read_bytes() == whole[1]
    path.unlink()

    def replace() -> None:
        path.unlink()
        path.write_text("mine")

    with pytest.raises(UnwrittenRowsError, match="was replaced by another file") as found:
        evaluate(Still(300, replace), NAMES, CONFIG, rows=path)
    assert (found.value.rows, path.read_text()) == (whole[0], "mine")


def test_a_link_stays_a_link(whole: tuple[list[EpisodeResult], bytes], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("target.jsonl")
    evaluate(Still(), NAMES, CONFIG, rows=tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").is_symlink()
    assert (tmp_path / "target.jsonl").read_bytes() == whole[1]


def test_jobs_keep_rows_too(bank: ExpertBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate("random", OF_BANK, CONFIG)
    path = write_rows(tmp_path / "rows.jsonl", whole[:8])  # all of the first part
    assert evaluate_in_jobs("random", OF_BANK, CONFIG, LocalProcesses(1), rows=path) == whole
    assert read_rows(path) == sorted(whole, key=lambda row: row.order)

    def played_again(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("m3dt_agent.evaluation.parallel.EvaluationJob.__call__", played_again)
    assert evaluate_in_jobs("random", OF_BANK, CONFIG, LocalProcesses(0), rows=path) == whole
    with pytest.raises(ConfigError, match="policy 'random' there, 'm3dt-mixture' here"):
        evaluate_in_jobs(bank, OF_BANK, CONFIG, LocalProcesses(0), rows=path)


def test_jobs_know_the_rows_of_a_bank(bank: ExpertBank, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, episodes=1)
    (row,) = evaluate(M3DTAgent.load(bank.path), OF_BANK[:1], config, rows=tmp_path / "rows.jsonl")
    for precision in ("float32", "auto"):
        found = evaluate_in_jobs(
            bank, OF_BANK[:1], config, LocalProcesses(0), precision=precision, rows=tmp_path / "rows.jsonl"
        )
        assert found == [row]
    with pytest.raises(ConfigError, match="precision 'float32' there, 'bfloat16' here"):
        evaluate_in_jobs(bank, OF_BANK[:1], config, LocalProcesses(0), precision="bfloat16", rows=tmp_path / "rows.jsonl")
