"""Makes tests/golden/benchmark_report: `python tests/golden/make_benchmark_report.py`, from the repository root.

run/      the folder of a benchmark run, made by hand (tests/benchmark_runs.py has every number)
report/   what `benchmarks.report.write_report` makes of it, the pictures and the page that holds them apart
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_name("benchmark_report")


def main() -> None:
    from benchmark_runs import PLANS, hand_made_run

    from benchmarks.report import write_report

    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        write_report([hand_made_run(FOLDER / "run")], out, PLANS)
        for file in sorted(file for file in out.rglob("*") if file.suffix in (".md", ".json", ".csv", ".tex")):
            target = FOLDER / "report" / file.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
