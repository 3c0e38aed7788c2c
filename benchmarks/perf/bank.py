"""Measures seconds and memory of loading a bank, compared with reading its files.

    python -m benchmarks.perf.bank [--bank DIR] [--experts 48] [--folder DIR] [--json [FILE]] [--quick]

Without `--bank`, a bank of random weights at the paper preset (48 experts: 174M parameters, 697 MB) is made and removed again.
All files are in the page cache. The yardstick is plain reading, file by file, where everything read is kept, as a loaded model
is. Two more rows compare: reading and taking the sha256 of every file, which is the least that a verified load must do; and
reading into one large array. The kernel gives such an array huge pages, quickly or slowly depending on the state of its memory.
Peak memory is how much the process grows.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig

from .frame import Run, add_options, alternate, begin, finish, peak_mb, table_wanted

TASKS = ("walker-run", "reach")
ROUNDS = 9
QUICK = ModelConfig(64, 2, 4, 8, context_length=20, prompt_length=5)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to load the bytes: median seconds, the same as a multiple of plain reading, and peak memory."""

    what: str
    megabytes: float  # of all files
    seconds: float
    over_reading: float
    peak_mb: float | None
    rounds: int


def make_bank(folder: Path, config: ModelConfig) -> Path:
    """A bank of random weights with every stage done, made with the helpers of the tests."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from contracts import random_bank, random_datasets

    return random_bank(folder / "bank", random_datasets(folder / "datasets", TASKS), config).path


def read_all(files: list[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def read_and_hash(files: list[Path]) -> list[tuple[bytes, str]]:
    return [(content, hashlib.sha256(content).hexdigest()) for content in map(Path.read_bytes, files)]


def read_into_one(files: list[Path]) -> np.ndarray:
    """Reads all files into one array."""
    sizes = [file.stat().st_size for file in files]
    whole, begin_at = np.empty(sum(sizes), np.uint8), 0
    for file, size in zip(files, sizes, strict=True):
        with file.open("rb", buffering=0) as opened:
            opened.readinto(memoryview(whole)[begin_at : begin_at + size])
        begin_at += size
    return whole


def measure(bank: Path, rounds: int) -> list[Row]:
    """Times all ways in turns; plain reading is the first row."""
    files = sorted(bank.rglob("*.safetensors"))
    runs: dict[str, Run] = {
        "plain reading, kept": lambda: read_all(files),
        "reading into one array": lambda: read_into_one(files),
        "reading and sha256": lambda: read_and_hash(files),
        "ExpertBank.open, every file verified": lambda: ExpertBank.open(bank),
        "its model, verified while reading": lambda: ExpertBank.open(bank, check="sizes").model(),
        "M3DTAgent.load": lambda: M3DTAgent.load(bank),
    }
    peaks = [peak_mb(run) for run in runs.values()]
    timing = alternate(list(runs.values()), rounds=rounds)
    megabytes, reading = sum(file.stat().st_size for file in files) / 1e6, timing.medians[0]
    return [
        Row(what, megabytes, seconds, seconds / reading, peak, timing.rounds)
        for what, seconds, peak in zip(runs, timing.medians, peaks, strict=True)
    ]


def table_line(row: Row) -> str:
    peak = "?" if row.peak_mb is None else f"{row.peak_mb:.0f}"
    return f"{row.what:38s} {row.seconds * 1e3:9.1f} ms {row.over_reading:7.2f} x reading   peak MB {peak:>6s}"


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--bank", type=Path, help="measure this one instead of making one")
    parser.add_argument("--experts", type=int, default=48)
    parser.add_argument("--folder", type=Path, help="where the bank is made and deleted again; default: the system's")
    args = parser.parse_args()
    record = begin("bank", experts=args.experts, bank=args.bank and str(args.bank), quick=args.quick)
    config = QUICK if args.quick else replace(ModelConfig.preset("paper"), n_experts=args.experts)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args.bank or make_bank(Path(folder), config), 3 if args.quick else ROUNDS)
    if table_wanted(args.json):
        print(f"{found[0].megabytes:.0f} MB of files, {found[0].rounds} rounds")
        print("\n".join(map(table_line, found)))
    finish(record, found, json_path=args.json)


if __name__ == "__main__":
    main()
