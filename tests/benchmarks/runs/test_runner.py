"""Cells are run to their end once, whatever kills them on the way, and by as many machines as there are."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_runs import put_on_path

from benchmarks.methods import Work, method
from benchmarks.records import FINAL, Cell, read_run, write_cell, write_cell_episodes
from benchmarks.runs.data import collection_seeds, prepare
from benchmarks.runs.runner import held, is_finished, run_cells, status
from m3dt_agent.cli.shared.options import parse_shard
from m3dt_agent.errors import ConfigError
from m3dt_agent.jobs import Engine, LocalProcesses, RayCluster, shard_of

pytest.importorskip("mujoco")

TASKS = ("cheetah-vel-20", "cheetah-vel-30")
SETTINGS: dict[str, Any] = {
    "embed_dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "n_experts": 2,
    "context_length": 2,
    "prompt_length": 1,
    "dropout": 0.1,
    "backbone_steps": 8,
    "expert_steps": 4,
    "router_steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "router_learning_rate": 1e-3,
    "warmup_steps": 2,
    "tasks_per_batch": None,
    "precision": "float32",
    "threads": 1,
    "grouping_batches": 2,
    "grouping_runs": 2,
    "demonstrations": 4,
    "episodes": 2,
    "eval_seed": 10_000,
    "slots": 4,
}


def cell(method: str, seed: int = 0, **changes: Any) -> Cell:
    return Cell("test", method, "two", 0, seed, "smoke", "expert", TASKS, SETTINGS | changes)


CELLS = [cell("random"), cell("prompt-dt"), cell("m3dt-random", 1)]


def rows_of(run: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on kills, machines and time."""
    found = {}
    for result in read_run(run):
        for fraction, rows in result.episodes.items():
            kept = [dataclasses.replace(row, versions={}) for row in rows]
            found[f"{result.cell.method} {fraction}"] = kept
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted; its datasets lie beside it."""
    folder = tmp_path_factory.mktemp("whole")
    said: list[str] = []
    assert run_cells(CELLS, folder / "run", folder / "datasets", workers=0, progress=False, say=said.append) == 3
    return folder / "run"


def test_a_run_holds_what_was_promised(whole: Path) -> None:
    results = {result.cell.method: result for result in read_run(whole)}
    assert set(results) == {"random", "prompt-dt", "m3dt-random"}
    assert set(results["prompt-dt"].episodes) == {"0.75", "1.00"}
    for result in results.values():
        assert result.facts is not None
        assert [(row.task, row.seed) for row in result.final] == [(t, s) for t in TASKS for s in (10_000, 10_001)]
        assert set(result.facts.data["tasks"]) == set(TASKS)
    facts = results["m3dt-random"].facts
    assert facts is not None
    assert facts.windows == 4 * (8 + 2 * 4 + 4)
    assert facts.parameters > results["prompt-dt"].facts.parameters  # type: ignore[union-attr]
    assert facts.training_flop > 0
    assert len(facts.curve) > 3
    assert set(facts.conflict) == {"attention", "ffn", "experts", "router", "other", "all"}
    usage = json.loads((whole / results["m3dt-random"].cell.id / "expert_weights.json").read_text())
    assert all(sum(weights) == pytest.approx(1.0, abs=1e-4) for weights in usage.values())
    assert not list(whole.glob("*/work"))


def test_nothing_is_done_twice(whole: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != ".lock"}
    said: list[str] = []
    assert run_cells(CELLS, whole, whole.parent / "datasets", workers=0, progress=False, say=said.append) == 0
    assert all(line.endswith("done before") for line in said)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert all(row["finished"] for row in status(CELLS, whole))
    assert not is_finished(whole, cell("prompt-dt", 5))


def test_shards_of_two_machines_merge(whole: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        run_cells(
            CELLS, tmp_path / str(i), whole.parent / "datasets", shard=(i, 2), workers=0, progress=False, say=lambda _: None
        )
    merged = read_run(tmp_path / "1", tmp_path / "2")
    assert {result.cell.id for result in merged} == {c.id for c in CELLS}
    assert rows_of(tmp_path / "1") | rows_of(tmp_path / "2") == rows_of(whole)


@pytest.mark.parametrize("engine", [LocalProcesses(2), pytest.param(RayCluster("local"), marks=pytest.mark.slow)])
def test_cells_in_jobs_are_the_same(whole: Path, tmp_path: Path, engine: Engine) -> None:
    said: list[str] = []
    run = tmp_path / "run"
    assert run_cells(CELLS, run, whole.parent / "datasets", workers=0, engine=engine, progress=False, say=said.append) == 3
    assert rows_of(run) == rows_of(whole)
    assert len(said) == 3
    assert all(line.endswith(" s") for line in said)


def start(run: Path, datasets: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__)
    code = textwrap.dedent(f"""
        import importlib.util, sys
        from pathlib import Path
        sys.path[:0] = [{str(here.parents[3])!r}, {str(here.parents[2])!r}]
        spec = importlib.util.spec_from_file_location("cells_under_test", {str(here)!r})
        module = importlib.util.module_from_spec(spec)
        sys.modules["cells_under_test"] = module
        spec.loader.exec_module(module)
        from benchmarks.runs.runner import run_cells
        run_cells(module.CELLS, Path({str(run)!r}), Path({str(datasets)!r}), workers=0, progress=False)
    """)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_rows(whole: Path, tmp_path: Path) -> None:
    for seconds in (4.0, 6.0, 7.0, 8.0):
        process = start(tmp_path / "run", whole.parent / "datasets")
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "run", whole.parent / "datasets").wait(120) == 0
    assert rows_of(tmp_path / "run") == rows_of(whole)


def test_a_kill_between_the_fractions_does_not_train_backwards(whole: Path, tmp_path: Path) -> None:
    chosen = CELLS[1]
    work = Work(chosen, prepare(whole.parent / "datasets", TASKS, "expert", 4, 0, 0), tmp_path / "run" / chosen.id / "work")
    write_cell(tmp_path / "run", chosen, None)
    early = next(r for r in read_run(whole) if r.cell.id == chosen.id)
    write_cell_episodes(tmp_path / "run", chosen, "0.75", early.episodes["0.75"])
    work.folder.mkdir()
    method(chosen.method).train(dataclasses.replace(work, progress=False), FINAL)  # killed here, its rows not written
    run_cells([chosen], tmp_path / "run", whole.parent / "datasets", workers=0, progress=False, say=lambda _: None)
    assert rows_of(tmp_path / "run") == {key: rows for key, rows in rows_of(whole).items() if key.startswith("prompt-dt")}


def test_a_cell_in_other_hands_is_left_alone(whole: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with held(tmp_path / CELLS[0].id) as free:
        assert free
        assert run_cells(CELLS[:1], tmp_path, whole.parent / "datasets", workers=0, progress=False, say=said.append) == 0
    assert said == [said[0]]
    assert said[0].endswith("another process has it")


def test_what_a_method_returns_is_checked(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from types import SimpleNamespace
METHOD = SimpleNamespace(task_id="none", fractions=("1.00",), train=lambda work, fraction: "agent")
"""
    put_on_path(tmp_path, monkeypatch, code, package="my-package")
    mine = cell("mine", package="my-package 1.0")
    with pytest.raises(ConfigError, match="'mine' must return an Outcome from train; got 'agent'"):
        run_cells([mine], tmp_path / "run", whole.parent / "datasets", workers=0, progress=False, say=lambda _: None)
    with pytest.raises(ConfigError, match=r"'mine' of my-package 2\.0 is to be run"):
        run_cells(
            [cell("mine", package="my-package 2.0")], tmp_path / "run", whole.parent / "datasets", workers=0, say=lambda _: None
        )


@given(st.integers(1, 7), st.integers(0, 20))
def test_shards_cover_every_cell_once(n: int, count: int) -> None:
    cells = [cell("random", seed) for seed in range(count)]
    parts = [shard_of(cells, (i, n)) for i in range(1, n + 1)]
    assert sorted(c.training_seed for part in parts for c in part) == list(range(count))


def test_what_a_shard_must_be() -> None:
    assert parse_shard("2/3") == (2, 3)
    for text in ("", "2", "a/b", "1/2/3"):
        with pytest.raises(ConfigError, match="I/N"):
            parse_shard(text)
    for shard in ((0, 1), (3, 2)):
        with pytest.raises(ConfigError, match="1 <= I <= N"):
            shard_of(CELLS, shard)


def test_evaluated_episodes_must_not_have_been_collected(tmp_path: Path) -> None:
    seed = next(iter(collection_seeds(TASKS, 4, 0)))
    with pytest.raises(ConfigError, match="was collected"):
        run_cells([cell("random", eval_seed=seed)], tmp_path, tmp_path / "data", workers=0, say=lambda _: None)
