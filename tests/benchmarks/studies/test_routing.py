"""The study of routing: its verdicts on made-up episodes, what it reads from logs, and all of it, small, on real tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import routing as study
from m3dt_agent.config import ModelConfig
from m3dt_agent.evaluation import EpisodeResult


def episodes(name: str, scores: list[float]) -> list[EpisodeResult]:
    """Cheetah-vel episodes with these normalized scores."""
    return [
        EpisodeResult(
            task="cheetah-vel-3",
            seed=seed,
            episode_return=-100.0 + 0.7 * score,
            length=200,
            success=None,
            policy=name,
            bank_hash="",
            reward_version=None,
            stop_on_success=True,
            versions={},
        )
        for seed, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("shift", "noise", "verdict"),
    [
        (5.0, 1.0, "better"),
        (-1.0, 1.0, "not inferior"),
        (-5.0, 1.0, "not shown to be as good"),
        (0.0, 100.0, "not shown to be as good"),
    ],
)
def test_verdicts_follow_the_paired_differences(shift: float, noise: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(30, 60, 100)
    other = base + shift + noise * rng.choice([-1, 1], 100) * rng.uniform(0.5, 1, 100) / 3
    rows = {"a": episodes("a", other.tolist()), "b": list(reversed(episodes("b", base.tolist())))}
    found = study.compare(rows, "a", "b")
    clipped = np.clip(other, 0, 100) - base
    assert found.mean == pytest.approx(clipped.mean(), abs=1e-6)
    half = 1.6604 * clipped.std(ddof=1) / 10  # the 95% quantile of Student's t with 99 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=1e-3)
    assert found.verdict == verdict


def test_the_share_of_products_is_read_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs/router.csv"
    log.write_text("step,expert,loss,lr,grad_norm,conflict,experts_kept,seconds\n1,,1,1,1,,0.5,1\n2,,1,1,1,,0.25,1\n")
    assert study.products_saved(tmp_path) == 0.375
    log.write_text("step,expert,loss,lr,grad_norm,conflict,experts_kept,seconds\n1,,1,1,1,,,1\n")
    assert study.products_saved(tmp_path) == 1.0


@pytest.mark.slow
def test_the_whole_study_runs_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "TASKS", ("cheetah-vel-3", "cheetah-vel-30", "reacher-easy", "ant-dir-7"))
    monkeypatch.setattr(study, "MODEL", ModelConfig(16, 2, 2, n_experts=3, context_length=4, prompt_length=2))
    monkeypatch.setattr(study, "STEPS", {"backbone": 20, "experts": 10, "router": 10})
    monkeypatch.setattr(study, "DEMONSTRATIONS", 8)
    monkeypatch.setattr(study, "EPISODES", 2)
    found = study.study(tmp_path / "out", tmp_path / "datasets", 0)
    study.show(found)
    assert set(found["scores"]) == {label for _, _, label in study.ACTORS}
    assert {d["episodes"] for d in found["differences"]} == {8}
    assert found["experts_used_in_training"]["dense"] == 1.0
    assert all(1 <= k <= 3 for per_task in found["experts_needed"].values() for k in per_task.values())
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/rows").iterdir()}
    again = study.study(tmp_path / "out", tmp_path / "datasets", 0)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
