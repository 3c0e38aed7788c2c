"""Counts, from the command line: `PYTHONPATH=tests python -m fuzz READER INPUTS [SEED]`, or `… replay FILE`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from fuzz.campaign import READERS, Campaign, keep
from fuzz.harness import Fuzzer


def run_many(fuzzer: Fuzzer, reader: str, inputs: int, seed: int) -> int:
    """Runs so many inputs of a reader, prints what came of them; the number of kinds of findings."""
    start = time.perf_counter()
    found = Campaign(fuzzer, reader, seed, inputs=inputs).run()
    print(f"{reader}, seed {seed}: {fuzzer.counts[reader]}; {time.perf_counter() - start:.0f} s in all")
    for path, (kind, (_, outcome)) in zip(keep(found), found.items(), strict=True):
        print(f"\n{kind}\n  {path}\n  " + outcome.finding.replace("\n", "\n  "))
    return len(found)


def replay(fuzzer: Fuzzer, file: Path) -> int:
    recipe = json.loads(file.read_text())["recipe"]
    print(json.dumps(recipe, indent=1))
    outcome = fuzzer.run(recipe)
    print(f"{outcome.kind} in {outcome.seconds:.3f} s, {outcome.peak_mb:.0f} MB\n{outcome.text}\n" + "\n".join(outcome.seen))
    return int(bool(outcome.finding))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*READERS, "replay"])
    parser.add_argument("inputs", help="how many inputs, or the file of a recipe")
    parser.add_argument("seed", type=int, nargs="?", default=int(time.time()) % 100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m3dt-fuzz-") as folder, Fuzzer(Path(folder)) as fuzzer:
        if arguments.what == "replay":
            return replay(fuzzer, Path(arguments.inputs))
        return int(run_many(fuzzer, arguments.what, int(arguments.inputs), arguments.seed) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
