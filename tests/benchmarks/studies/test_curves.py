"""Learning curves of tiny arms: points grow with steps, and what is there is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import imitation, learning_curves
from benchmarks.studies.curves import Arm, Study, main
from m3dt_agent.tasks import resolve

pytest.importorskip("mujoco")
TINY: dict[str, Any] = {
    "embed_dim": 8,
    "n_layers": 1,
    "context_length": 2,
    "prompt_length": 1,
    "demonstrations": 4,
    "batch_size": 4,
}


@pytest.mark.parametrize("study", [learning_curves.STUDY, imitation.STUDY], ids=lambda study: study.name)
def test_arms_differ_from_each_other(study: Study) -> None:
    assert len(set(study.tasks)) == len(study.tasks)
    assert len({repr(arm) for arm in study.arms.values()}) == len(study.arms)


def test_the_twenty_tasks_are_in_the_proportions_of_all() -> None:
    domains = [task.domain for task in resolve(learning_curves.TASKS)]
    assert [domains.count(domain) for domain in ("metaworld", "dmcontrol", "ant-dir", "cheetah-vel")] == [6, 4, 5, 5]


def test_two_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"tiny, one": Arm(**TINY), "own": Arm(**TINY, decay=True, use_returns=False, ema=0.5, steps=(3,))}
    study = Study("tiny", ("cheetah-vel-20", "ant-dir-3"), arms, steps=(2, 6), episodes=2)
    arguments = ["curves", str(tmp_path / "out"), "--datasets", str(tmp_path / "data"), "--workers", "0"]

    def run() -> list[dict[str, Any]]:
        monkeypatch.setattr("sys.argv", [*arguments, "--json", str(tmp_path / "points.json")])
        main(study, None)
        rows: list[dict[str, Any]] = json.loads((tmp_path / "points.json").read_text())["rows"]
        return rows

    points = run()
    assert [(point["arm"], point["steps"], point["windows"]) for point in points] == [
        ("tiny, one", 2, 8),
        ("tiny, one", 6, 24),
        ("own", 3, 12),
    ]
    assert points[1]["tflop"] == pytest.approx(3 * points[0]["tflop"])
    assert points[1]["minutes"] > points[0]["minutes"] > 0
    assert all(0 < point["loss"] < 10 for point in points)
    assert set(points[0]["domains"]) == {"cheetah-vel", "ant-dir"}
    assert set(points[0]["tasks"]) == set(study.tasks)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run() == points
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
