"""Learning curves of one tiny arm: points grow with steps, and what is there is not done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies import learning_curves
from benchmarks.studies.learning_curves import ARMS, TASKS, Arm, main
from m3dt_agent.tasks import resolve

pytest.importorskip("mujoco")


def test_arms_differ_from_the_first_in_what_they_say() -> None:
    assert [task.domain for task in resolve(TASKS)].count("metaworld") == 6
    assert len(set(TASKS)) == 20
    assert len({repr(arm) for arm in ARMS.values()}) == len(ARMS)


def test_one_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm(embed_dim=8, n_layers=1, context_length=2, prompt_length=1, demonstrations=4, batch_size=4)
    monkeypatch.setattr(learning_curves, "TASKS", ("cheetah-vel-20", "ant-dir-3"))
    monkeypatch.setattr(learning_curves, "ARMS", {"tiny, one": arm})
    monkeypatch.setattr(learning_curves, "STEPS", (2, 6))
    monkeypatch.setattr(learning_curves, "EPISODES", 2)
    arguments = ["curves", str(tmp_path / "out"), "--datasets", str(tmp_path / "data"), "--workers", "0"]

    def run() -> list[dict[str, object]]:
        monkeypatch.setattr("sys.argv", [*arguments, "--json", str(tmp_path / "points.json")])
        main()
        rows: list[dict[str, object]] = json.loads((tmp_path / "points.json").read_text())["rows"]
        return rows

    points = run()
    assert [point["steps"] for point in points] == [2, 6]
    assert points[1]["tflop"] == pytest.approx(3 * points[0]["tflop"])  # type: ignore[operator]
    assert set(points[0]["domains"]) == {"cheetah-vel", "ant-dir"}  # type: ignore[call-overload]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run() == points
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
