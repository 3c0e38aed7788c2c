"""Measures the seconds of importing the package and of `m3dt --help` in fresh interpreters, compared with importing torch.

    python -m benchmarks.perf.startup [--rounds 11] [--json [FILE]] [--quick]

Files are in the page cache. Importing `M3DTAgent` imports torch; importing the package alone does not.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .frame import add_options, alternate, begin, finish, table_wanted


@dataclass(frozen=True, slots=True)
class Row:
    """One start: median seconds, and the same as a multiple of `import torch`."""

    what: str
    seconds: float
    over_torch: float
    rounds: int


def commands() -> dict[str, list[str]]:
    """Name → command to start; `import torch` comes first."""
    statements = ("import torch", "import m3dt_agent", "from m3dt_agent import M3DTAgent", "pass")
    script = Path(sys.executable).with_name("m3dt")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "m3dt_agent.cli"]
    return {text: [sys.executable, "-c", text] for text in statements} | {"m3dt --help": [*program, "--help"]}


def start(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(rounds: int) -> list[Row]:
    """Times all commands in turns."""
    starts = {what: functools.partial(start, command) for what, command in commands().items()}
    for run in starts.values():
        run()
    timing = alternate(list(starts.values()), rounds=rounds)
    torch_seconds = timing.medians[0]
    return [Row(what, taken, taken / torch_seconds, timing.rounds) for what, taken in zip(starts, timing.medians, strict=True)]


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    record = begin("startup", quick=args.quick)
    found = measure(1 if args.quick else args.rounds)
    if table_wanted(args.json):
        for row in found:
            print(f"{row.what:34s} {row.seconds:7.3f} s {row.over_torch:6.2f} x import torch   ({row.rounds} rounds)")
    finish(record, found, json_path=args.json)


if __name__ == "__main__":
    main()
