"""Runs the performance programs one after another: `python -m benchmarks.perf`, `m3dt bench` or `make perf`.

    python -m benchmarks.perf [PROGRAM…] [--quick] [--json [FILE]]

Without PROGRAM, all of them run, which takes about half an hour on two cores. `--quick` shows within minutes whether they run;
its numbers mean nothing. Each program is a process of its own and prints a table. `--json FILE` writes all records to FILE as
{"records": […]}; `--json` alone prints them on standard output and moves the tables to standard error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .frame import STANDARD_OUTPUT, add_options, write_json

PROGRAMS = (
    *("model", "prompts", "acting", "decisions", "exported", "sampler"),
    *("startup", "bank", "reading", "transfer", "evaluation", "cluster"),
)
"""The programs. Each is a module of this folder that takes --quick and --json FILE."""


def run_program(name: str, *, quick: bool, json_file: Path | None, tables_aside: bool) -> dict[str, Any] | None:
    """Runs one program. Returns its record if it is to write one to `json_file`, else None.

    Raises:
        subprocess.CalledProcessError: the program failed.
    """
    command = [sys.executable, "-m", f"benchmarks.perf.{name}", *(["--quick"] if quick else [])]
    if json_file is not None:
        command += ["--json", str(json_file)]
    subprocess.run(command, check=True, stdout=sys.stderr if tables_aside else None)
    return None if json_file is None else json.loads(json_file.read_text())


def run_all(names: list[str], *, quick: bool, json_path: str | None) -> list[str]:
    """Runs the programs and returns those that failed."""
    tables_aside, records, failed = json_path == STANDARD_OUTPUT, [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"\n{name}", flush=True, file=sys.stderr if tables_aside else sys.stdout)
            json_file = None if json_path is None else Path(folder, f"{name}.json")
            try:
                records.append(run_program(name, quick=quick, json_file=json_file, tables_aside=tables_aside))
            except subprocess.CalledProcessError as error:
                failed.append(f"{name} (exit code {error.returncode})")
    if json_path is not None:
        write_json({"records": records}, json_path)
    return failed


def main() -> int:
    """Parses the command line and runs the programs; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.perf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"any of {', '.join(PROGRAMS)}; default: all")
    add_options(parser)
    args = parser.parse_args()
    if unknown := sorted(set(args.programs) - set(PROGRAMS)):
        parser.error(f"unknown program {', '.join(unknown)}; valid: {', '.join(PROGRAMS)}")
    failed = run_all(args.programs or list(PROGRAMS), quick=args.quick, json_path=args.json)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
