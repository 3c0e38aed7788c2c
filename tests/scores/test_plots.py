"""Figures are written whole or not at all, and show what they were given."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_tasks import POINT, SWING, WIDE

from m3dt_agent import tasks
from m3dt_agent.errors import ConfigError
from m3dt_agent.quickstart import figure as drawing
from m3dt_agent.scores import EpisodeResult, Summary, plots, summarize, wilson_interval
from m3dt_agent.tasks import Linear, TaskSpec

TASKS = ("drawer-open", "ant-dir-10")


def figure_data() -> drawing.FigureData:
    return drawing.FigureData(
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
    np.testing.assert_allclose(drawing._smooth(values, width), wanted, atol=1e-9)


def test_the_figure_shows_every_bar_weight_and_curve() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    data, figure = figure_data(), Figure()
    axes = figure.subplots(3)
    drawing._draw_curves(axes[0], data)
    drawing._draw_weights(figure, axes[1], data)
    drawing._draw_scores(axes[2], data)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["backbone", "router"]
    assert sorted(text.get_text() for text in axes[1].texts) == ["0.10", "0.25", "0.75", "0.90"]
    assert len(axes[1].patches) == len(TASKS)  # one frame per task
    heights = [bar.get_height() for bar in axes[2].patches]
    assert heights == [100.0, 0.0, 50.0] * 4  # both tasks and their mean, for each policy


def test_a_figure_that_cannot_be_drawn_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawing.save_figure(figure_data(), tmp_path / "figure.png")
    before = (tmp_path / "figure.png").read_bytes()
    with pytest.raises(ValueError, match="not supported"):
        drawing.save_figure(figure_data(), tmp_path / "figure.nonsense")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == before


def summary(policy: str, names: tuple[str, ...], score: float = 60.0) -> Summary:
    """Five episodes per task around `score`; Meta-World succeeds in all of them."""
    rows = []
    for name in names:
        for seed in range(5):
            value, task = score + seed - 2, tasks.get(name)
            returns = {"dmcontrol": 10 * value, "ant-dir": 5 * value, "cheetah-vel": -100 + 0.7 * value, "metaworld": 4000.0}
            success = True if task.domain == "metaworld" else None
            rows.append(EpisodeResult(name, seed, returns[task.domain], 200, success, policy, "", None, False, {}))
    return summarize(rows)


def score_axes(*summaries: Summary, tasks: Sequence[TaskSpec] = ()) -> Any:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plots._draw_score_bars(axes, summaries, plots._score_rows(summaries, tasks))
    return axes


def test_score_bars_stand_by_domain_with_their_intervals() -> None:
    pytest.importorskip("matplotlib")
    scores = summary("m3dt-mixture", ("ant-dir-10", "drawer-open", "cheetah-vel-22", "ant-dir-3"))
    axes = score_axes(scores)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["mean", "metaworld", "drawer-open", "ant-dir", "ant-dir-3", "ant-dir-10", "cheetah-vel", "cheetah-vel-22"]
    at = dict(zip(labels, axes.get_yticks(), strict=True))
    bars = {round(bar.get_y() + bar.get_height() / 2, 6): bar.get_width() for bar in axes.patches}
    wanted = {"mean": scores.mean_score, "drawer-open": 100.0, "ant-dir-3": 60.0, "ant-dir-10": 60.0, "cheetah-vel-22": 60.0}
    assert bars == {round(at[row], 6): pytest.approx(score) for row, score in wanted.items()}
    assert list(at.values()) == sorted(at.values())
    [whiskers] = axes.collections
    ends = {round(segment[0, 1], 6): segment[:, 0].tolist() for segment in whiskers.get_segments()}
    assert ends[round(at["drawer-open"], 6)] == pytest.approx([100 * wilson_interval(5, 5)[0], 100.0])
    assert ends[round(at["ant-dir-10"], 6)] == pytest.approx(list(scores.tasks["ant-dir-10"].score_interval))
    assert ends[round(at["mean"], 6)] == pytest.approx(list(scores.mean_interval))


def test_each_policy_has_its_bars_and_a_colour_of_its_own() -> None:
    pytest.importorskip("matplotlib")
    both, one = ("walker-run", "ant-dir-3"), ("walker-run",)
    summaries = summary("m3dt-mixture", both), summary("ours, other seed", one, 20.0), summary("zero", both, 10.0)
    axes = score_axes(*summaries)
    assert [len(container.patches) for container in axes.containers[::2]] == [3, 2, 3]  # with the mean
    colours = [container.patches[0].get_facecolor() for container in axes.containers[::2]]
    assert len(set(colours)) == 3
    assert plots._policy_colours(["m3dt-mixture", "x", "zero"])[::2] == [
        plots.POLICY_COLOURS[name] for name in ("final", "zero")
    ]
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(spans))  # none over another
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["m3dt-mixture", "ours, other seed", "zero"]


def own_rows(policy: str, values: dict[TaskSpec, float]) -> Summary:
    """Three episodes of each task with this return; a task with success succeeds in all of them."""
    facts = {"length": 20, "policy": policy, "bank_hash": "", "reward_version": None, "stop_on_success": False, "versions": {}}
    return summarize(
        EpisodeResult(task.name, seed, value, success=task.has_success or None, score=task.score, **facts)  # type: ignore[arg-type]
        for task, value in values.items()
        for seed in range(3)
    )


def test_tasks_of_ones_own_stand_in_their_domains_and_returns_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    swing = dataclasses.replace(SWING, domain=SWING.name, score=Linear(-1500.0, 0.0, clip=False), has_success=True)
    scores = own_rows("a", {WIDE: 123_456.0, POINT: -3.0, swing: 1500.0})
    own = own_rows("b", {WIDE: 7.0})
    axes = score_axes(scores, own, tasks=(swing, WIDE, POINT))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["mean", "lines", "own-wide", "own-point", "own-swing", "own-swing"]  # a domain called as its task
    assert [label.get_fontweight() == "bold" for label in axes.get_yticklabels()] == [True, True, False, False, True, False]
    assert [[bar.get_width() for bar in bars.patches] for bars in axes.containers[::2]] == [[150.0, 100.0, 200.0], []]
    written = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert written == {"150": 108.0, "100": 101.2, "200": 108.0, "return 123,456.0": 1.2, "return 7.0": 1.2}
    [whiskers] = [one for one in axes.collections if len(one.get_segments())]
    assert [200.0, 200.0] in [segment[:, 0].tolist() for segment in whiskers.get_segments()]  # of its score, not its successes
    path = plots.save_score_figure([scores, own], tmp_path / "scores.png", [swing, WIDE, POINT])
    assert path.stat().st_size > 5_000


def test_the_score_figure_grows_with_its_tasks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    few = plots.save_score_figure([summary("zero", TASKS)], tmp_path / "few.png")
    all_tasks = tuple(task.name for task in tasks.TASKS)
    many = plots.save_score_figure([summary("zero", all_tasks)], tmp_path / "many.png")
    (width, low), (same, high) = Image.open(few).size, Image.open(many).size
    assert width == same
    assert high - low == pytest.approx(150 * 0.21 * (160 + 4 - 2 - 2), abs=2)  # inches per line, at 150 dots each
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.png", "many.png"]


def test_scores_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    some = [summary(policy, TASKS) for policy in ("a", "b", "c", "d", "e")]
    for wrong, named in (([], "none"), (some, "a, b, c, d, e"), ([some[0], some[0]], "a, a")):
        with pytest.raises(ConfigError, match=f"1 to 4 policies, each once; got {named}"):
            plots.save_score_figure(wrong, tmp_path / "scores.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["$\\frac$", "_hidden", "costs $5 and $6", "_$x$"])
def test_policy_names_are_shown_as_they_are(policy: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = EpisodeResult("drawer-open", 0, 1.0, 10, True, policy, "", "v2", False, {})
    path = plots.save_score_figure([summarize([row])], tmp_path / "scores.svg")
    assert path.stat().st_size > 1_000
    label = plots.plain_label(policy)
    assert label.replace("\\$", "$").strip(" ").isprintable()
    assert not label.startswith("_")
    assert "$" not in label.replace("\\$", "")
    assert plots.plain_label("\x1b[31m\n\u202ered") == r"\x1b[31m\n\u202ered"
