"""The report of the run made by hand, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_runs import PLANS, hand_made_run
from PIL import Image

from benchmarks.report import write_report


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The hand-made run, with two videos, and its report."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("benchmark")
    run = hand_made_run(folder / "run")
    (run / "videos").mkdir()
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("#0072B2", "#D55E00")]
    for name in ("walker & run.gif", "walker-walk.webp"):
        frames[0].save(run / "videos" / name, save_all=True, append_images=frames[1:], duration=100, loop=0)
    write_report([run], folder / "report", PLANS)
    return run, folder / "report"
