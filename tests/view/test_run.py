"""The page of a training: its curves are the logs', whatever else is in them; a benchmark run is a table of cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import HOSTILE, ReadPage, harmless
from row_examples import row

from m3dt_agent.errors import DatasetError, PathError
from m3dt_agent.scores.rows import write_rows
from m3dt_agent.training.logs import COLUMNS
from m3dt_agent.view.run import cells_in, logs_in, run_page


def log(folder: Path, stage: str, *rows: tuple[object, ...], header: tuple[str, ...] = COLUMNS) -> Path:
    file = folder / "logs" / f"{stage}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(",".join(map(str, line)) for line in (header, *rows)) + "\n")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log(tmp_path, "backbone", *((step, "", 1 / step, 1e-3, 0.5, 0.8, "", step / 10) for step in range(10, 10_010, 10)))
    rows = [(step, expert, expert + 1.0, 1e-3, 0.5, "", "", 3.0) for step in (10, 20) for expert in (0, 1, 2)]
    log(tmp_path, "experts", *rows, (20, f'"{HOSTILE.replace(chr(34), "")}"', "nan", HOSTILE.replace('"', ""), "", "", "", ""))
    log(
        tmp_path,
        "router",
        (40, "", 0.25, 1e-4, 0.1, "", 0.75, 9.0),
        ("x", "", 1.0, 1, 1, "", "", 1),
        ("9" * 5000, "", 1, 1, 1, "", "", 1),
    )
    return tmp_path


def test_curves_of_every_stage(folder: Path) -> None:
    page = ReadPage(run_page(folder, HOSTILE).html())
    assert harmless(page)
    plots = page.data["plots"]
    assert set(plots) == {"loss", "lr", "gradnorm", "conflict", "expertskept"}
    by_name = {trace["name"]: trace for trace in plots["loss"]["data"]}
    assert set(by_name) == {
        "backbone",
        "experts, expert 0",
        "experts, expert 1",
        "experts, expert 2",
        "experts, mean",
        "router",
    }
    backbone = by_name["backbone"]
    assert (backbone["x"][0], backbone["x"][-1], len(backbone["x"])) == (10, 10_000, 334)
    assert backbone["y"][-1] == pytest.approx(1e-4)
    assert (by_name["experts, mean"]["x"], by_name["experts, mean"]["y"]) == ([10, 20], [2.0, 2.0])
    assert plots["expertskept"]["data"][0]["y"] == [0.75]
    assert plots["loss"]["layout"]["yaxis"]["type"] == "log"
    assert "step 10,000, loss 0.0001, 1,000 s of training steps" in page.text


def test_logs_of_older_releases_have_fewer_columns(tmp_path: Path) -> None:
    log(tmp_path, "backbone", (10, 0.5), header=("step", "loss"))
    assert set(ReadPage(run_page(tmp_path, "run").html()).data["plots"]) == {"loss"}


def test_what_is_no_log_is_an_error(tmp_path: Path) -> None:
    file = log(tmp_path, "backbone")
    assert logs_in(tmp_path) == {}
    file.write_bytes(b"step,expert\n\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"backbone.csv is no log of a training"):
        logs_in(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(PathError, match=r"backbone.csv"):
        logs_in(tmp_path)


def test_a_benchmark_run_is_a_table_of_its_cells(tmp_path: Path) -> None:
    cell = {"experiment": "methods", "method": HOSTILE, "tasks": ["walker-run"], "training_seed": 3, "scale": "smoke"}
    facts = {"parameters": 1200, "windows": 640, "curve": [[320, 0.5], [640, 0.25], [HOSTILE, 1], [1]]}
    for name, document in (("aaa", {"cell": cell, "facts": facts}), ("bbb", {"cell": cell, "facts": None}), ("ccc", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(json.dumps(document))
    write_rows(tmp_path / "aaa" / "rows-1.00.jsonl", [row(seed=seed, episode_return=400.0 + 200 * seed) for seed in range(2)])
    log(tmp_path / "shared" / "bank", "backbone", (10, "", 0.5, 1e-3, 0.5, "", "", 1.0))
    assert len(cells_in(tmp_path)) == 3
    page = ReadPage(run_page(tmp_path, "run").html())
    assert harmless(page)
    header, first, second, third = page.tables["cells"]
    assert dict(zip(header, first, strict=True))["score"] == "50.0"
    assert first[:7] == ["aaa", "methods", HOSTILE, "1", "3", "640", "1,200"]
    assert (second[5], second[7]) == ("-", "-")
    assert "cell.json" in third[1]
    assert page.data["plots"]["cellcurves"]["data"][0]["y"] == [0.5, 0.25]
    assert "Training of shared/bank" in page.text
