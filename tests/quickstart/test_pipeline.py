"""The quickstart: its choice of tasks, and a miniature of the real run, interrupted and continued."""

from __future__ import annotations

import io
import json
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_trackers import Notebook

from m3dt_agent import tasks
from m3dt_agent.config import EvalConfig
from m3dt_agent.quickstart import HELD_OUT_SEED, POLICIES, TASKS, QuickstartConfig, pipeline, run
from m3dt_agent.quickstart.settings import STAGE_SECONDS

MINIATURE = QuickstartConfig(steps=(3, 2, 2), precision="float32", demonstrations=4, held_out=3, episodes=1, workers=0)


def test_tasks_cover_all_domains_as_promised() -> None:
    chosen = tasks.resolve(TASKS)
    counts = {domain: sum(task.domain == domain for task in chosen) for domain in tasks.DOMAINS}
    assert counts == {"metaworld": 4, "dmcontrol": 2, "ant-dir": 1, "cheetah-vel": 1}
    assert all(int(name.rsplit("-", 1)[1]) >= 20 for name in TASKS if name.startswith("cheetah-vel"))


@pytest.mark.slow
def test_tasks_are_shown_well_and_not_solved_by_nothing() -> None:
    evaluation = pytest.importorskip("m3dt_agent.evaluation")
    config = EvalConfig(episodes=10, stop_on_success=True)
    scores = {
        level: {
            name: row.mean_score for name, row in evaluation.summarize(evaluation.evaluate(level, TASKS, config)).tasks.items()
        }
        for level in ("expert", "random", "zero")
    }
    assert min(scores["expert"].values()) >= 85
    assert max(scores["random"].values()) <= 20
    assert np.mean(list(scores["zero"].values())) <= 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A miniature run on four of the tasks, killed by Ctrl-C in its stage 2 and run again: folder, summary, what it said."""
    for module in ("metaworld", "dm_control", "shimmy", "matplotlib"):
        pytest.importorskip(module)
    out = tmp_path_factory.mktemp("quickstart") / "run"
    said: list[str] = []

    def interrupt(line: str) -> None:
        if line.startswith("train_experts"):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "TASKS", ("drawer-open", "walker-walk", "ant-dir-10", "cheetah-vel-22"))
        patch.setattr(pipeline, "HELD_OUT_WINDOWS", 8)
        with pytest.raises(KeyboardInterrupt):
            run(out, MINIATURE, say=interrupt)
        assert not (out / "summary.json").exists()
        told = Notebook()
        summary = run(out, MINIATURE, say=said.append, trackers=[told])
        assert [run.name.split("-")[0] for run in told.of("start")] == ["experts", "router", *["evaluation"] * len(POLICIES)]
        return out, summary, said


def test_an_interrupted_run_keeps_what_is_done(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, _, said = finished
    kept = [line.split(":")[0] for line in said if line.endswith("kept")]
    assert kept == ["collect", "held_out", "plan", "train_backbone"]
    assert "train_experts …" in said


def test_the_summary_holds_what_was_promised(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, summary, _ = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["steps"] == {"backbone": 3, "experts": 2, "router": 2}
    assert summary["seconds"] == pytest.approx(sum(summary["seconds_per_part"].values()))
    assert set(summary["seconds_per_part"]) >= {"collect", "train_backbone", "train_router", "evaluate_final", "figure"}
    for policy in POLICIES:
        assert summary[policy] == pytest.approx(np.mean(list(summary["scores"][policy].values())))
    assert sorted(task for group in summary["held_out_error"] for task in group["tasks"]) == sorted(summary["tasks"])
    for group in summary["held_out_error"]:
        for who in ("backbone", "final"):
            wanted = np.mean([summary["held_out_error_per_task"][who][task] for task in group["tasks"]])
            assert group[who] == pytest.approx(wanted)
    for weights in summary["expert_weights"].values():
        assert sum(weights) == pytest.approx(1.0, abs=1e-5)


def test_all_policies_met_the_same_episodes(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, summary, _ = finished
    rows = {p: [json.loads(line) for line in (out / "rows" / f"{p}.jsonl").read_text().splitlines()] for p in POLICIES}
    episodes = {policy: [(row["task"], row["seed"]) for row in rows[policy]] for policy in POLICIES}
    assert len(episodes["final"]) == len(summary["tasks"])
    assert all(episodes[policy] == episodes["final"] for policy in POLICIES)
    assert {row["policy"] for row in rows["backbone"]} == {"backbone"}
    assert rows["backbone"][0]["bank_hash"] == rows["final"][0]["bank_hash"] != ""


def test_the_figure_and_the_bank_are_on_disk(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, _, _ = finished
    image = (out / "figure.png").read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    assert width > 1000
    assert height > 700
    bank = pytest.importorskip("m3dt_agent.bank").ExpertBank.open(out / "bank")
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["done"] * 3


def test_held_out_demonstrations_are_other_episodes(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    from m3dt_agent.data.episodes import find_sources, read_episodes

    out, summary, _ = finished
    for name in summary["tasks"]:
        seeds = [
            {episode.seed for episode in read_episodes(find_sources(out / folder, tasks.get(name))["demonstrations"])}
            for folder in ("datasets", "held-out")
        ]
        assert not seeds[0] & seeds[1]
    assert HELD_OUT_SEED > 0


def test_the_tables_show_every_task_and_group(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    from rich.console import Console

    from m3dt_agent.cli.quickstart import _quickstart_tables

    _, summary, _ = finished
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(_quickstart_tables(summary))
    text = console.export_text()
    assert all(task in text for task in summary["tasks"])
    assert f"{summary['final']:.1f}" in text


def test_what_is_left_open_is_measured_and_written_down(tmp_path: Path) -> None:
    work = pipeline.Quickstart(tmp_path, QuickstartConfig(precision="float32"))
    plan = work.plan()
    for stage, seconds in STAGE_SECONDS.items():
        assert plan["steps"][stage] == pytest.approx(seconds / plan["seconds_per_step"][stage], abs=0.5)
    assert sum(STAGE_SECONDS.values()) < 220
