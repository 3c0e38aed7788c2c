"""Measures loading a bank, and validating and packing a dataset, against another checkout of this package, in one run.

    python -m benchmarks.perf.reading [--against DIR] [--experts 16] [--episodes 120] [--rounds 15] [--json [FILE]]

Two processes, one for each checkout, read the same files in pairs, each of the two first in every other pair. A ratio is the
median over the pairs of our seconds over theirs; above 1, we are slower. Beside it stand the middle half of the pairs, which
shows the noise, and the ratio of the seconds of all cores, which other programs on the machine disturb less.
Without `--against`, this checkout is compared with itself: what is then not 1 is noise. All files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
ROUNDS = 15
BANK_TASKS = ("walker-run", "reach")
DATASET_TASK, DATASET = "reach", "m3dt/reach/random-v0"
STEPS = 500
SERVE = "--serve"


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work: median seconds of each, and what ours take as a multiple of theirs."""

    what: str
    theirs: float
    ours: float
    ratio: float
    ratio_low: float  # the middle half of the pairs
    ratio_high: float
    cpu_ratio: float
    rounds: int


# -- in the process of one checkout --------------------------------------------------------------------------------------------


def serve() -> None:
    """Does the work that standard input asks for, line by line, and answers with its seconds: [wall clock, all cores]."""
    import time

    from m3dt_agent.agent import M3DTAgent
    from m3dt_agent.bank import ExpertBank
    from m3dt_agent.data.episodes import validate_dataset
    from m3dt_agent.data.pack import pack_dataset
    from m3dt_agent.tasks import get

    def validate(path: Path, _: Path) -> None:
        if problems := validate_dataset(path, get(DATASET_TASK)):
            raise SystemExit(f"the dataset has problems: {problems[:3]}")

    work: dict[str, Callable[[Path, Path], object]] = {
        "M3DTAgent.load": lambda path, _: M3DTAgent.load(path),
        "ExpertBank.open": lambda path, _: ExpertBank.open(path),
        "validate_dataset": validate,
        "pack_dataset": lambda path, cache: pack_dataset(path, get(DATASET_TASK), cache),
    }
    for line in sys.stdin:
        name, path = json.loads(line)
        with tempfile.TemporaryDirectory() as cache:
            wall, cpu = time.perf_counter(), time.process_time()
            kept = work[name](Path(path), Path(cache))
            took = [time.perf_counter() - wall, time.process_time() - cpu]
            del kept
        print(json.dumps(took), flush=True)


# -- in the process that compares ----------------------------------------------------------------------------------------------


class Checkout:
    """A process that imports the package of the checkout in `root`."""

    def __init__(self, root: Path, overlay: Path) -> None:
        package = overlay / "m3dt_agent"
        package.mkdir(parents=True)
        parts = {child.name: child for child in (*(root / "m3dt_agent").iterdir(), root / "hub")}  # as the wheel has them
        for name, child in parts.items():
            (package / name).symlink_to(child)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(overlay)},
            text=True,
        )

    def seconds(self, what: str, path: Path) -> tuple[float, float]:
        """Seconds of one piece of work, by the clock and of all cores."""
        asked, answers = self._pipes()
        print(json.dumps([what, str(path)]), file=asked, flush=True)
        if not (line := answers.readline()):
            raise SystemExit(f"{what} failed in the other process; see above")
        wall, cpu = json.loads(line)
        return wall, cpu

    def close(self) -> None:
        """Ends the process."""
        self._pipes()[0].close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def compare(theirs: Checkout, ours: Checkout, what: str, path: Path, rounds: int) -> Row:
    """Times one piece of work in pairs."""
    for checkout in (theirs, ours):
        checkout.seconds(what, path)  # imports what is imported late, and fills the page cache
    pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for round_ in range(rounds):
        first, second = (theirs, ours) if round_ % 2 == 0 else (ours, theirs)
        taken = {first: first.seconds(what, path), second: second.seconds(what, path)}
        pairs.append((taken[theirs], taken[ours]))
    ratios = [mine[0] / other[0] for other, mine in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Row(
        what,
        theirs=statistics.median(other[0] for other, _ in pairs),
        ours=statistics.median(mine[0] for _, mine in pairs),
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        cpu_ratio=statistics.median(mine[1] / other[1] for other, mine in pairs),
        rounds=rounds,
    )


def measure(against: Path, experts: int, episodes: int, rounds: int, quick: bool) -> list[Row]:
    """Makes the files with this checkout and lets both read them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from contracts import random_bank, random_datasets

    from m3dt_agent.config import ModelConfig

    config = ModelConfig(64, 2, 4, 2, context_length=20, prompt_length=5) if quick else ModelConfig.preset("paper")
    with tempfile.TemporaryDirectory() as folder:
        small = random_datasets(Path(folder, "small"), BANK_TASKS)
        bank = random_bank(Path(folder, "bank"), small, replace(config, n_experts=experts)).path
        random_datasets(Path(folder, "large"), [DATASET_TASK], episodes=episodes, length=STEPS)
        paths = {"M3DTAgent.load": bank, "ExpertBank.open": bank}
        paths |= dict.fromkeys(("validate_dataset", "pack_dataset"), Path(folder, "large", DATASET))
        theirs, ours = Checkout(against, Path(folder, "theirs")), Checkout(ROOT, Path(folder, "ours"))
        try:
            return [compare(theirs, ours, what, path, rounds) for what, path in paths.items()]
        finally:
            theirs.close()
            ours.close()


def table_line(row: Row) -> str:
    return (
        f"{row.what:18s} {row.theirs * 1e3:9.1f} ms theirs {row.ours * 1e3:9.1f} ms ours   ratio {row.ratio:5.3f} "
        f"({row.ratio_low:5.3f} … {row.ratio_high:5.3f})   cores {row.cpu_ratio:5.3f}   ({row.rounds} pairs)"
    )


def main() -> None:
    """Parses the command line, measures and prints."""
    from benchmarks.perf.frame import add_options, begin, finish, table_wanted

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--against", type=Path, default=ROOT, help="the root of another checkout; default: this one")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=120, help=f"of {STEPS} steps each, in the dataset")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    settings: dict[str, Any] = {"experts": 2, "episodes": 4, "rounds": 2} if args.quick else {}
    settings = {name: settings.get(name, getattr(args, name)) for name in ("experts", "episodes", "rounds")}
    record = begin("reading", against=str(args.against), quick=args.quick, **settings)
    found = measure(args.against.absolute(), **settings, quick=args.quick)
    if table_wanted(args.json):
        print("\n".join(map(table_line, found)))
    finish(record, found, json_path=args.json)


if __name__ == "__main__":
    if SERVE in sys.argv:
        serve()
    else:
        main()
