"""Files of rows: what exists can be written, what was written can be read, what is not a row is named by its line."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_examples import row

from m3dt_agent.errors import DatasetError, DiskSpaceError, InvalidValueError, M3DTError, PathError
from m3dt_agent.scores.rows import EpisodeResult, read_rows, write_rows
from m3dt_agent.tasks import TASKS


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(seed=s, episode_return=0.1 + s / 3) for s in range(3)] + [row("reach", 2**32 - 1, -1e-9, success=True)]
    path = write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert read_rows(path) == rows
    assert [json.loads(line)["normalized_score"] for line in path.read_text().splitlines()][-1] == 100.0
    assert os.listdir(path.parent) == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "no-such-task"}, "no-such-task"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"episode_return": float("nan")}, "holds NaN, which is not a number"),
        ({"length": 0}, "length must be"),
        ({"success": 1}, "success must be"),
        ({"policy": ""}, "policy must be"),
        ({"versions": {"a": 1}}, "versions must be"),
        ({"normalized_score": 51.0}, "give 50.0"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"task": "reach"}, "scored by success"),
        ({"length": True}, "length must be"),
        ({"episode_return": 10**30}, "more than 64 bits"),
        ({"policy": "\x1b[2Jmine"}, "policy must be"),
        ({"bank_hash": "a\nb"}, "bank_hash must be"),
        ({"settings": ["mixture"]}, "settings must be"),
        ({"versions": {"a": "b" * 70_000}}, "more than 65,536 bytes"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row(), row(seed=1)])
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps(json.loads(second) | change) + "\n")
    with pytest.raises(DatasetError, match=f"line 2.*{message}"):
        read_rows(path)


def test_truncated_and_incomplete_rows_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row(), row(seed=1)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DatasetError, match="line 2 is damaged"):
        read_rows(path)
    path.write_text('{"task": "reach"}\n')
    with pytest.raises(DatasetError, match="line 1: missing bank_hash, episode_return"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DatasetError, match="line 1 is damaged or foreign: it must be an object"):
        read_rows(path)


def test_rows_of_older_releases_can_be_read(tmp_path: Path) -> None:
    """A line as the first release wrote it, without settings."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"bank_hash": "", "episode_return": 500.0, "length": 500, "normalized_score": 50.0, "policy": "test", '
        '"reward_version": null, "seed": 7, "stop_on_success": false, "success": null, "task": "walker-run", '
        '"versions": {"gymnasium": "1.0"}}\n'
    )
    assert read_rows(path) == [row(seed=7)]
    assert write_rows(tmp_path / "again.jsonl", [row(seed=7)]).read_bytes() == path.read_bytes()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from([np.float64(2.5), np.int64(3), 2**63, 1e308]),
)
TABLES = st.one_of(VALUES, st.dictionaries(st.one_of(st.text(), st.integers()), VALUES, max_size=2), st.just({"torch": "2.6"}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each example writes a file
@given(
    task=st.sampled_from(["reach", "walker-run", "cheetah-vel-3", "ant-dir-3"]),
    changed=st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(EpisodeResult)]), TABLES, max_size=3),
    episode_return=st.floats(),
)
def test_every_row_that_exists_comes_back(task: str, changed: dict[str, Any], episode_return: float) -> None:
    try:
        one = dataclasses.replace(row(task), **({"episode_return": episode_return} | changed))
    except M3DTError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        assert read_rows(write_rows(path, [one, row(task)])) == [one, row(task)]


def test_a_value_that_no_episode_has_is_named() -> None:
    for wrong in (
        {"episode_return": float("inf")},
        {"seed": np.int64(3)},
        {"seed": 2**32},
        {"policy": "\ud800"},
        {"length": "9"},
    ):
        (name,) = wrong
        with pytest.raises(InvalidValueError, match=f"^{name} must be "):
            dataclasses.replace(row(), **wrong)


def test_a_row_too_long_to_be_read_is_not_written(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row()])
    with pytest.raises(InvalidValueError, match="walker-run, seed 1: a row takes at most 65536 bytes"):
        write_rows(path, [row(), row(seed=1, versions={"a": "b" * 70_000})])
    assert read_rows(path) == [row()]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_rows_stand_in_the_order_of_the_table_and_of_seeds() -> None:
    mixed = [row("walker-run", 1), row(TASKS[0].name, 5), row("walker-run", 0), row(TASKS[-1].name, 2)]
    ordered = sorted(mixed, key=lambda one: one.order)
    assert [(one.task, one.seed) for one in ordered] == [
        (TASKS[0].name, 5),
        ("walker-run", 0),
        ("walker-run", 1),
        (TASKS[-1].name, 2),
    ]


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "nothing"):
        with pytest.raises(PathError, match="cannot be used"):
            read_rows(tmp_path / name)


def test_a_full_disk_is_a_named_error_and_leaves_the_old_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row()])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskSpaceError, match=r"rows\.jsonl"):
            write_rows(path, [row(seed=seed) for seed in range(100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_rows(path) == [row()]
    assert os.listdir(tmp_path) == ["rows.jsonl"]
