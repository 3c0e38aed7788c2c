"""What a table must say beside its numbers."""

from __future__ import annotations

from pathlib import Path

from benchmark_runs import NAMED, TASKS, cell, facts, only_table, run_of, score, write

from benchmarks.report.records import Plan


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


def test_a_contrast_that_was_not_named_or_is_not_there_is_missed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [60.0], [50.0])
    assert only_table(run).contrasts == ()
    assert "No contrast was named before the run." in only_table(run).notes
    absent = only_table(run, Plan(contrast=("m3dt-gradient", "harmo-dt")))
    assert [contrast.named for contrast in absent.contrasts] == [False]
    assert any("m3dt-gradient against harmo-dt, is not among these cells" in note for note in absent.notes)
