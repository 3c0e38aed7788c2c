"""All of them, one after the other: `python -m benchmarks.perf`, or `make perf`. About twenty minutes on two cores."""

from __future__ import annotations

import subprocess
import sys

PROGRAMS = ("benchmarks.perf.sampler", "benchmarks.perf.model", "benchmarks.perf.transfer")

if __name__ == "__main__":
    for program in PROGRAMS:
        print(program, flush=True)
        subprocess.run([sys.executable, "-m", program], check=True)
