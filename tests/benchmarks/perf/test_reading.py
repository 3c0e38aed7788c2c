"""Pairs are taken in turns and compared pair by pair, and the other checkout's code is what runs for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.perf.reading import Checkout, compare

ROOT = Path(__file__).parents[3]


class Told(Checkout):
    """A checkout whose times are known."""

    def __init__(self, name: str, times: list[float], calls: list[str]) -> None:
        self.name, self.times, self.calls = name, iter(times), calls

    def seconds(self, what: str, path: Path) -> tuple[float, float]:
        self.calls.append(self.name)
        wall = next(self.times)
        return wall, 2 * wall


def test_ratios_are_of_pairs_and_each_comes_first_as_often() -> None:
    calls: list[str] = []
    theirs = Told("theirs", [9.0, 1.0, 10.0, 2.0, 4.0], calls)  # the first warms up
    ours = Told("ours", [9.0, 1.1, 11.0, 2.4, 4.0], calls)
    row = compare(theirs, ours, "pack_dataset", Path("x"), rounds=4)
    assert calls == ["theirs", "ours", "theirs", "ours", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert row.ratio == pytest.approx(1.1)  # of the medians it would be 3.2 / 3.0
    assert row.cpu_ratio == pytest.approx(1.1)
    assert (row.theirs, row.ours) == (3.0, 3.2)
    assert row.ratio_low < row.ratio < row.ratio_high


@pytest.mark.slow
def test_a_checkout_that_validates_slowly_is_found_out(tmp_path: Path) -> None:
    """The other one sleeps in `validate_dataset`, so ours takes a fraction of its time; what it does not change is alike."""
    for name in ("m3dt_agent", "hub"):
        shutil.copytree(ROOT / name, tmp_path / "other" / name, ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "other" / "m3dt_agent" / "data" / "validation.py"
    head, definition, rest = module.read_text().partition("def validate_dataset(")
    signature, _, body = rest.partition('"""')
    module.write_text(f'{head}{definition}{signature}__import__("time").sleep(0.5)\n    """{body}')
    command = [sys.executable, "-m", "benchmarks.perf.reading", "--quick", "--against", str(tmp_path / "other")]
    file = tmp_path / "found.json"
    subprocess.run([*command, "--json", str(file)], check=True, cwd=ROOT)
    ratios = {row["what"]: row["ratio"] for row in json.loads(file.read_text())["rows"]}
    assert set(ratios) == {"M3DTAgent.load", "ExpertBank.open", "validate_dataset", "pack_dataset"}
    assert ratios["validate_dataset"] < 0.5
    assert ratios["ExpertBank.open"] > 0.2
