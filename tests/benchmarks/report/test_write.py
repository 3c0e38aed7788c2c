"""A run made by hand gives the stored report; what a table may claim is limited; the page opens in a real browser."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_runs import PLANS, TASKS, cell, facts, hand_made_run, write
from PIL import Image

from benchmarks.experiments import EXPERIMENTS, cells
from benchmarks.records import write_cell
from benchmarks.report import cell_groups, compare, write_report
from benchmarks.report.comparison import build_report
from benchmarks.report.figures import expert_weights, write_overview_figures
from benchmarks.report.records import Contents, Plan, Row, Table
from benchmarks.report.tables import columns, document, markdown, paper_line
from m3dt_agent import tasks as task_table
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.scores import wilson_interval

pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium")
Written = tuple[Path, Path]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The hand-made run, with a video, and its report."""
    folder = tmp_path_factory.mktemp("benchmark")
    run = hand_made_run(folder / "run")
    (run / "videos").mkdir()
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("#0072B2", "#D55E00")]
    frames[0].save(run / "videos" / "walker & run.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    write_report([run], folder / "report", PLANS)
    return run, folder / "report"


def score(value: float) -> dict[str, list[float]]:
    """The same score in every episode of every task but Meta-World's, where one of two succeeds."""
    return {task: [100.0, 0.0] if task == "drawer-open" else [value, value] for task in TASKS}


def only_table(run: Path, plan: Plan | None = None, experiment: str = "claim", scale: str = "small") -> Table:
    [table] = build_report([run], {(experiment, scale): plan or Plan()}).tables
    return table


def row_of(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


# --- the golden --------------------------------------------------------------------------------------------------------------


def test_the_report_of_the_stored_run_is_the_stored_report(golden: Path, written: Written) -> None:
    stored = golden / "benchmark_report" / "report"
    report = build_report([golden / "benchmark_report" / "run"], PLANS)
    assert document(report) == json.loads((stored / "report.json").read_text())
    files = sorted(path.relative_to(stored) for path in stored.rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:  # `written` is of the same run, see the next test
        assert (written[1] / file).read_text() == (stored / file).read_text(), (
            f"{file}; see tests/golden/make_benchmark_report.py"
        )


def test_the_stored_run_is_the_hand_made_one(golden: Path, tmp_path: Path) -> None:
    stored, made = golden / "benchmark_report" / "run", hand_made_run(tmp_path / "run")
    files = {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()} == files


def test_its_numbers_are_those_of_pencil_and_paper(written: Written) -> None:
    claim, smoke = json.loads((written[1] / "report.json").read_text())["tables"]
    ours, base, random = claim["rows"]
    # m3dt-gradient: 100 on drawer-open but for seed 0 (50), walker-run 60 to 64, ant-dir-3 70, cheetah-vel-22 80
    assert ours["mean"] == (90 + 62 + 70 + 80) / 4
    assert (ours["metaworld"], ours["dmcontrol"], ours["MW+DMC"], ours["Ant+Cheetah"]) == (90.0, 62.0, 76.0, 75.0)
    # of 20 cells the middle ten: 5 × 70 and 5 × 80, and of 60 … 64 and 50, 100 × 4 there are 6 below and 4 above
    assert ours["iqm"] == pytest.approx((64 + 5 * 70 + 4 * 80) / 10)
    low, high = wilson_interval(9, 10)
    assert (ours["success_rate"], ours["success_low"], ours["success_high"]) == (0.9, round(low, 4), round(high, 4))
    assert base["mean"] == (50 + 54 + 62 + 72) / 4
    assert base["last_quarter"] == pytest.approx((0 + 1 + 0 + 2) / 4)
    assert (random["mean"], random["windows"]) == (7.5, 0)
    named, other = claim["contrasts"]
    # per seed: (0 + 8 + 8 + 8) / 4 and, with both drawers open, (50 + 8 + 8 + 8) / 4
    differences = np.array([6.0, 18.5, 18.5, 18.5, 18.5])
    half = 2.776445 * differences.std(ddof=1) / np.sqrt(5)
    assert (named["a"], named["b"], named["named"], named["verdict"]) == ("m3dt-gradient", "prompt-dt", True, "better")
    assert [named[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([16, 16 - half, 16 + half], abs=1e-3)
    assert named["improvement"] == pytest.approx(((4 * 5 + 5 * 0.5) / 25 + 3) / 4)  # one of the five drawers draws
    assert (other["b"], other["named"]) == ("random", False)
    assert smoke["contrasts"][0]["verdict"] == "not comparable: different data"


def test_markdown_csv_and_latex_hold_the_same_rows(written: Written) -> None:
    name = "table-1-four-0-mixture-smoke"
    text = (written[1] / "tables" / f"{name}.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["m3dt-gradient", "prompt-dt", "ours|<b>&_$5"]
    assert [float(row["mean"]) for row in rows] == [85.0, 70.0, 65.0]
    latex = (written[1] / "tables" / f"{name}.tex").read_text()
    assert r"ours\textbar{}\textless{}b\textgreater{}\&\_\$5 & 65.0 {[}52.0, 78.0{]}* &" in latex
    widths = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}
    assert widths == {len(columns(build_report([written[0]], PLANS).tables[1])[0]) - 1}
    report = (written[1] / "report.md").read_text()
    assert r"| ours\|&lt;b&gt;&amp;\_\$5 | 65.0 \[52.0, 78.0\]\* |" in report
    for line in ("Smoke scale", "not evidence", "1 planned cell of this experiment not finished", "conditional on the trained"):
        assert line in report
    for figure in re.findall(r"\((figures/[^)]*)\)", report):
        assert (written[1] / figure).stat().st_size > 1_000
        assert (written[1] / figure).with_suffix(".svg").read_text().startswith("<?xml")


def test_a_report_is_the_same_whenever_it_is_written(written: Written, tmp_path: Path) -> None:
    write_report([written[0]], tmp_path, PLANS)
    for file in sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()):
        assert (tmp_path / file).read_bytes() == (written[1] / file).read_bytes(), file


# --- what may be claimed -----------------------------------------------------------------------------------------------------


def run_of(run: Path, ours: Sequence[float], theirs: Sequence[float], before: float | None = None, **changes: Any) -> Path:
    """m3dt-gradient and prompt-dt with these scores, one per training seed; before: of prompt-dt after 75%."""
    for seed, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        write(run, cell("m3dt-gradient", seed, **changes), facts(), score(a))
        write(run, cell("prompt-dt", seed, **changes), facts(), score(b), None if before is None else score(before))
    return run


NAMED = Plan(contrast=("m3dt-gradient", "prompt-dt"))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([60, 61, 62, 60, 61], [50, 50, 50, 51, 51], "better"),
        ([50, 50, 50, 51, 51], [60, 61, 62, 60, 61], "worse"),
        ([50, 70, 40, 60, 55], [52, 60, 55, 50, 57], "undecided"),
        ([60, 61], [50, 52], "better"),
        ([60, 50], [55, 55], "undecided"),
    ],
)
def test_contrasts_are_better_worse_or_undecided(tmp_path: Path, ours: list[float], theirs: list[float], verdict: str) -> None:
    table = only_table(run_of(tmp_path / "run", ours, theirs), NAMED)
    [contrast] = table.contrasts
    assert contrast.verdict == verdict
    assert contrast.difference.estimate.conditional == (len(ours) < 5)
    assert any("conditional on the trained models" in note for note in table.notes) == (len(ours) < 5)
    words = compare([tmp_path / "run"], "m3dt-gradient", "prompt-dt", {("claim", "small"): NAMED})
    assert f"m3dt-gradient against prompt-dt: {verdict}. Mean score" in words


def test_nothing_is_claimed_against_a_baseline_that_was_still_improving(tmp_path: Path) -> None:
    """Three of four tasks move: 60 → 61.5 is 1.125 points, 60 → 61.2 is 0.9."""
    five = [90.0] * 5
    undertrained = only_table(run_of(tmp_path / "a", five, [61.5] * 5, before=60.0), NAMED)
    assert [contrast.verdict for contrast in undertrained.contrasts] == ["claim not tested: undertrained"]
    assert "claim not tested: undertrained: prompt-dt won 1.1 points in its last quarter of training." in undertrained.notes
    trained = only_table(run_of(tmp_path / "b", five, [61.2] * 5, before=60.0), NAMED)
    assert [contrast.verdict for contrast in trained.contrasts] == ["better"]
    unknown = only_table(run_of(tmp_path / "c", five, [61.2] * 5), NAMED)
    assert "Whether prompt-dt was still improving in its last quarter is not known." in unknown.notes


def test_smoke_runs_are_no_evidence(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [90.0] * 5, [60.0] * 5, before=60.0, scale="smoke")
    table = only_table(run, NAMED, scale="smoke")
    assert [contrast.verdict for contrast in table.contrasts] == ["better (not evidence)"]
    assert table.notes[0].startswith("Smoke scale: not evidence")


def test_different_data_are_an_error_in_the_table_and_make_no_claim(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [90.0] * 5, [60.0] * 5)
    write(run, cell("prompt-dt", 4), facts(data={"fingerprint": "0bad" * 16}), score(60))
    table = only_table(run, NAMED)
    assert table.notes[0] == (
        "ERROR: not all cells were trained on the same data (0bad0bad0bad: prompt-dt; 5eed5eed5eed: m3dt-gradient, prompt-dt); "
        "their scores do not compare."
    )
    assert table.contrasts[0].verdict == "not comparable: different data"


def test_episodes_by_other_rules_are_an_error(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [90.0], [60.0])
    file = run / cell("prompt-dt").id / "rows-1.00.jsonl"
    file.write_text(file.read_text().replace('"stop_on_success": false', '"stop_on_success": true'))
    assert (
        only_table(run).notes[0].startswith(f"ERROR: episodes of {', '.join(sorted(TASKS))} were not all evaluated by the same")
    )


def test_other_contrasts_are_corrected_by_holm(tmp_path: Path) -> None:
    """The same small difference stands alone when it was named, and not among five that were not."""
    rng = np.random.default_rng(0)
    run = run_of(tmp_path / "run", [60, 61, 59, 62, 58], [56, 60, 57, 59, 57])
    for i in range(5):
        for seed, value in enumerate([56, 60, 57, 59, 57]):
            write(run, cell(f"other-{i}", seed), facts(), score(value + rng.normal(0, 0.05)))
    table = only_table(run, NAMED)
    named, *others = table.contrasts
    assert (named.named, named.verdict) == (True, "better")
    assert named.p_value == named.difference.p_value < 0.05
    assert [contrast.b for contrast in others] == [f"other-{i}" for i in range(5)]
    smallest = min(contrast.difference.p_value for contrast in others)
    assert min(contrast.p_value for contrast in others) == pytest.approx(5 * smallest)
    assert {contrast.verdict for contrast in others} == {"undecided"}


def test_a_contrast_that_was_not_named_or_is_not_there_is_missed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [60.0], [50.0])
    assert only_table(run).contrasts == ()
    assert "No contrast was named before the run." in only_table(run).notes
    absent = only_table(run, Plan(contrast=("m3dt-gradient", "harmo-dt")))
    assert [contrast.named for contrast in absent.contrasts] == [False]
    assert any("m3dt-gradient against harmo-dt, is not among these cells" in note for note in absent.notes)


def test_contrasts_and_plans_are_those_of_the_experiments(tmp_path: Path) -> None:
    planned = {found.id: found for found in cells("claim", "small")}
    run = run_of(tmp_path, [60.0], [50.0])
    write_cell(run, next(iter(planned.values())), None)  # begun
    table = build_report([run]).tables[0]
    assert [(contrast.a, contrast.b) for contrast in table.contrasts if contrast.named] == [EXPERIMENTS["claim"].contrast]
    assert f"{len(planned)} planned cells of this experiment not finished; the table is of those that are." in table.notes


# --- what stands in which table ----------------------------------------------------------------------------------------------


def test_settings_that_an_experiment_varies_are_in_the_labels(tmp_path: Path) -> None:
    for width in (128, 32):
        settings = {"embed_dim": width, "backbone_steps": 1_000}
        write(tmp_path, cell("prompt-dt", settings=settings), facts(parameters=width), score(50))
    write(tmp_path, cell("m3dt-gradient", settings={"embed_dim": 64, "backbone_steps": 1_000}), facts(), score(60))
    table = only_table(tmp_path, NAMED)
    assert [row.label for row in table.rows] == ["m3dt-gradient", "prompt-dt (embed_dim=32)", "prompt-dt (embed_dim=128)"]
    assert [contrast.named for contrast in table.contrasts] == [True, True]
    assert any("2 pairs of rows, corrected by Holm" in note for note in table.notes)
    assert [row.parameters for row in table.rows[1:]] == [32, 128]
    assert compare([tmp_path], "prompt-dt (embed_dim=32)", "prompt-dt (embed_dim=128)", {}).count("undecided") == 1


def test_cells_that_experiments_share_stand_in_each(tmp_path: Path) -> None:
    shared, own = cell("prompt-dt"), cell("harmo-dt", experiment="other")
    write(tmp_path, shared, facts(), score(50))
    write(tmp_path, own, facts(), score(60))
    plans = {
        ("other", "small"): Plan(frozenset({shared.id, own.id, "not-there"})),
        ("third", "small"): Plan(frozenset({shared.id})),
        ("fourth", "small"): Plan(frozenset({shared.id, "not-there"})),
    }
    report = build_report([tmp_path], plans)
    assert [(t.experiment, [row.label for row in t.rows]) for t in report.tables] == [
        ("claim", ["prompt-dt"]),
        ("other", ["harmo-dt", "prompt-dt"]),
    ]
    assert "1 planned cell of this experiment not finished; the table is of those that are." in report.tables[1].notes
    assert report.also == ("third (small)",)


def test_task_set_seeds_with_the_same_tasks_are_training_seeds_and_others_are_not(tmp_path: Path) -> None:
    few, crossed = TASKS[1:], tmp_path / "crossed"
    for seed in range(3):
        write(tmp_path / "same", cell("prompt-dt", seed, task_set_seed=seed), facts(), score(50 + seed))
        for set_seed in range(2):
            write(crossed, cell("prompt-dt", seed, task_set_seed=set_seed), facts(), score(50 + seed))
    table = only_table(tmp_path / "same")
    assert (table.task_set_seeds, table.rows[0].scores.seeds) == ((0, 1, 2), (0, 1, 2))
    assert [table.task_set_seeds for table in build_report([crossed], {}).tables] == [(0,), (1,)]
    write(tmp_path / "same", cell("prompt-dt", 3, tasks=few), facts(), {task: [50.0] for task in few})
    assert [len(table.tasks) for table in build_report([tmp_path / "same"], {}).tables] == [3, 4]


def test_an_overview_shows_what_more_tasks_cost(tmp_path: Path) -> None:
    few = TASKS[1:3]
    for seed, lost in enumerate((10.0, 30.0)):
        write(tmp_path, cell("prompt-dt", seed, tasks=few, task_set="two"), facts(), {task: [80.0] for task in few})
        write(tmp_path, cell("prompt-dt", seed), facts(), {**score(80 - lost), "drawer-open": [100.0, 100.0]})
    write(tmp_path, cell("zero", 0), facts(), score(10))
    report = build_report([tmp_path], {})
    [overview] = report.overviews
    assert (overview.task_sets, overview.sizes) == (("two", "four"), (2, 4))
    first, last = overview.rows["prompt-dt"]
    assert first is not None
    assert last is not None
    assert (first.mean, first.low, first.high, first.runs) == (80.0, 80.0, 80.0, 2)
    assert (last.mean, last.low, last.high) == ((77.5 + 62.5) / 2, 62.5, 77.5)
    assert overview.lost("prompt-dt") == pytest.approx(100 * (1 - 70 / 80))
    assert overview.rows["zero"][0] is None
    assert overview.lost("zero") is None
    assert write_overview_figures(overview, tmp_path, "all") == ["all-tasks"]
    text = markdown(Contents({}, {"all": overview}, {"all": ["all-tasks"]}, report.also))
    assert r"| prompt-dt | 80.0 \(80.0 to 80.0; 2\) | 70.0 \(62.5 to 77.5; 2\) | 12.5% |" in text
    assert "![all-tasks](figures/all-tasks.png)" in text
    assert {"all-tasks.png", "all-tasks.svg"} <= {path.name for path in tmp_path.iterdir()}


def test_models_of_single_tasks_make_one_table(tmp_path: Path) -> None:
    for i, task in enumerate(TASKS[1:]):
        one = cell("prompt-dt", tasks=(task,), task_set=f"only-{task}")
        write(tmp_path, one, facts(windows=100), {task: [10.0 * i, 10.0 * i]}, {task: [10.0 * i, 10.0 * i]})
    table = only_table(tmp_path)
    assert (table.task_set, len(table.tasks)) == (cell_groups.SINGLE, 3)
    assert (table.rows[0].mean.value, table.rows[0].windows, table.rows[0].gain) == (10.0, 300, 0.0)


def test_two_machines_runs_merge(tmp_path: Path) -> None:
    write(tmp_path / "a", cell("prompt-dt", 0), facts(), score(40))
    write(tmp_path / "b", cell("prompt-dt", 1), facts(), score(60))
    write_cell(tmp_path / "b", cell("prompt-dt", 0), None)
    [table] = build_report([tmp_path / "b", tmp_path / "a"], {}).tables
    assert table.rows[0].scores.seeds == (0, 1)


def test_a_run_with_nothing_finished_has_no_report(tmp_path: Path) -> None:
    write_cell(tmp_path, cell("prompt-dt"), None)
    with pytest.raises(ConfigError, match="none of the 1 cells is finished"):
        write_report([tmp_path], tmp_path / "report", {})
    assert not (tmp_path / "report").exists()


def test_a_comparison_of_what_is_not_there_names_what_is(written: Written) -> None:
    with pytest.raises(ConfigError, match="no table has both 'm3dt-gradient' and 'm3dt'; there are m3dt-gradient, ours"):
        compare([written[0]], "m3dt-gradient", "m3dt", PLANS)


def test_the_papers_numbers_stand_beside_all_160_tasks_and_no_others(tmp_path: Path) -> None:
    names = tuple(task.name for task in task_table.TASKS)
    values = {name: [100.0 if task_table.get(name).domain == "metaworld" else 50.0] for name in names}
    for method in ("m3dt-gradient", "m3dt-no-grouping", "m3dt-end-to-end", "prompt-dt"):
        write(tmp_path, cell(method, tasks=names, task_set="mt160"), facts(), values)
    table = only_table(tmp_path)
    header, rows = columns(table)
    paper = {row[0]: row[header.index("paper")] for row in rows}
    assert paper == {
        "m3dt-gradient": "78.21",
        "m3dt-no-grouping": "67.34",
        "m3dt-end-to-end": "71.90 (summary)",
        "prompt-dt": "-",
    }
    line = paper_line(table)
    assert line is not None
    assert "71.65 (best baseline; summary) or 72.75 (best baseline, from the text's +7.5%; text)" in line
    other = dataclasses.replace(table, task_set="mt160[13]")
    assert paper_line(other) is None
    assert {row[header.index("paper")] for row in columns(other)[1]} == {"-"}


def test_scores_per_task_have_wilsons_interval_where_they_are_success_rates(tmp_path: Path) -> None:
    table = only_table(run_of(tmp_path / "run", [60.0], [50.0]))
    drawer = row_of(table, "prompt-dt").by_task["drawer-open"]
    assert (drawer.mean, drawer.low, drawer.high) == (50.0, *(100 * end for end in wilson_interval(1, 2)))
    walker = row_of(table, "prompt-dt").by_task["walker-run"]
    assert (walker.mean, walker.low, walker.high) == (50.0, 50.0, 50.0)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": [1, 2], "b": [1]}', '{"a": []}', '{"a": ["x"]}', '{"a": [NaN]}', '{"a": 1}', "{}"]
)
def test_expert_weights_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "expert_weights.json").write_text(text)
    with pytest.raises(DatasetError, match=r"expert_weights\.json must hold"):
        expert_weights(tmp_path / "expert_weights.json")


# --- the page ----------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are open, every tag with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_fetches_nothing(written: Written) -> None:
    page = Page((written[1] / "index.html").read_text())
    assert page.open == []
    assert not any(tag in ("script", "iframe", "object", "b") for tag, _ in page.tags)
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if attributes.get(name)]
    assert all(source and source.startswith(("data:", "#")) for source in sources)
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    figures = ["scores", "windows", "flop", "profiles", "curves"]
    assert pictures == [*figures, "experts-0", *figures, "walker & run"]
    assert "ours|<b>&_$5" in page.text
    for wanted in (
        "claim not tested: undertrained",
        "published single-task",
        f"{task_table.get('walker-run').published_score:.1f}",
    ):
        assert wanted in page.text


def open_in_chromium(page: Path, profile: Path) -> tuple[Path, list[str]]:
    """A screenshot, and what the page wrote to the console."""
    assert CHROMIUM is not None
    shot = profile.with_suffix(".png")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", f"--screenshot={shot}", "--window-size=1300,3000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return shot, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_opens_in_a_browser_without_a_console_error(written: Written, tmp_path: Path) -> None:
    shot, console = open_in_chromium(written[1] / "index.html", tmp_path / "profile")
    assert console == []
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    for colour in ((227, 239, 247), (0, 114, 178), (213, 94, 0)):  # the claim, and both methods in the figures
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) <= 2).sum() > 200, colour


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_page_that_fetched_something_would_be_noticed(written: Written, tmp_path: Path) -> None:
    text = (written[1] / "index.html").read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</body>", '<img src="http://127.0.0.1:9/picture.png"></body>'))
    _, console = open_in_chromium(broken, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
