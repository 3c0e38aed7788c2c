"""The figure is written whole or not at all, and shows what it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent import plots

TASKS = ("drawer-open", "ant-dir-10")


def figure_data() -> plots.FigureData:
    return plots.FigureData(
        tasks=TASKS,
        curves={"backbone": ([10, 20, 30], [0.5, 0.2, 0.1]), "experts": ([], []), "router": ([5], [0.1])},
        weights=np.array([[0.9, 0.1], [0.25, 0.75]]),
        groups={"drawer-open": 0, "ant-dir-10": 1},
        scores={policy: {"drawer-open": 100.0, "ant-dir-10": 0.0} for policy in plots.POLICY_COLOURS},
    )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(1, 12))
def test_smoothing_is_a_centred_mean(values: list[float], width: int) -> None:
    half = width // 2
    wanted = [np.mean(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]
    np.testing.assert_allclose(plots._smooth(values, width), wanted, atol=1e-9)


def test_the_figure_shows_every_bar_weight_and_curve() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    data, figure = figure_data(), Figure()
    axes = figure.subplots(3)
    plots._draw_curves(axes[0], data)
    plots._draw_weights(figure, axes[1], data)
    plots._draw_scores(axes[2], data)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["backbone", "router"]
    assert sorted(text.get_text() for text in axes[1].texts) == ["0.10", "0.25", "0.75", "0.90"]
    assert len(axes[1].patches) == len(TASKS)  # one frame per task
    heights = [bar.get_height() for bar in axes[2].patches]
    assert heights == [100.0, 0.0, 50.0] * 4  # both tasks and their mean, for each policy


def test_a_figure_that_cannot_be_drawn_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.save_figure(figure_data(), tmp_path / "figure.png")
    before = (tmp_path / "figure.png").read_bytes()
    with pytest.raises(ValueError, match="not supported"):
        plots.save_figure(figure_data(), tmp_path / "figure.nonsense")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == before


def test_curves_come_from_the_logs_with_experts_averaged(tmp_path: Path) -> None:
    columns = "step,expert,loss,lr,grad_norm,conflict,seconds\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "backbone.csv").write_text(columns + "10,,0.5,1,1,,1\n20,,0.25,1,1,,2\n")
    (tmp_path / "logs" / "experts.csv").write_text(columns + "5,0,0.1,1,1,,1\n5,1,0.3,1,1,,1\n")
    (tmp_path / "logs" / "router.csv").write_text(columns)
    curves = plots.learning_curves(tmp_path)
    assert curves["backbone"] == ([10, 20], [0.5, 0.25])
    assert curves["experts"] == ([5], [pytest.approx(0.2)])
    assert curves["router"] == ([], [])
