"""What all performance programs share: timing in turns, peak memory, the speed of matrix products, and the JSON record.

    add_options(parser)                          --json [FILE] and --quick, which every program takes
    begin(program, **settings)                   a record with date, machine and load, made before anything is measured
    alternate([ours, baseline])                  medians of two or more callables, timed in turns
    peak_mb(run)                                 how much memory of the process (or the GPU) a run needs
    matmul_ceilings(shapes)                      the best GFLOP/s of single products, float32 and bfloat16
    finish(record, rows, json_path=args.json)    writes the record; each program prints its own table

A record is {"program", "date", "machine", "settings", "rows": [...]}. `--json` alone prints it on standard output, where
nothing else may then be printed. `--json FILE` writes it to the file, and the table is printed as well.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3dt_agent.system.machine import usable_cores

Run = Callable[[], object]
Shape = tuple[int, int, int]

SQUARE: Shape = (2048, 2048, 2048)
PAPER_SHAPES: tuple[Shape, ...] = (SQUARE, (1200, 256, 1024), (1200, 1024, 256))
"""(n, k, m) of products n x k by k x m: a large one, and two of a feed-forward layer on 16 windows of the paper preset."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "sha_ni")
STANDARD_OUTPUT = "-"


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that a measurement was made on."""

    cpu: str
    flags: list[str]  # those of FLAGS that the CPU has
    cores: int  # usable by this process
    threads: int  # torch's
    memory_gb: float
    gpu: str | None
    system: str
    python: str
    torch: str
    numpy: str
    load_average: float  # of the last minute, when the program began


@dataclass(frozen=True, slots=True)
class Record:
    """What a program measured, as it is written to JSON."""

    program: str
    date: str
    machine: Machine
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of each callable over `rounds` rounds, in the order of the callables."""

    medians: tuple[float, ...]
    rounds: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every program takes."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=STANDARD_OUTPUT,
        type=_writable,
        metavar="FILE",
        help="write the record to FILE; without FILE print it instead of the table",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions, to see whether it runs")


def _writable(json_path: str) -> str:
    """Refuses a file that cannot be written, before half an hour of measuring."""
    if not Path(json_path).parent.is_dir() or Path(json_path).is_dir():
        raise argparse.ArgumentTypeError(
            f"cannot write {json_path}: it is a folder, or there is no folder {Path(json_path).parent}"
        )
    return json_path


def table_wanted(json_path: str | None) -> bool:
    """Whether a program should print its table."""
    return json_path != STANDARD_OUTPUT


def begin(program: str, **settings: Any) -> Record:
    """A record without rows. Call it first, so that the load average is not caused by the program itself."""
    return Record(program, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), describe_machine(), settings)


def finish(record: Record, rows: Iterable[Any], *, json_path: str | None) -> None:
    """Writes the record with its rows (dataclasses or dicts) to `json_path`, the value of `--json`; None writes nothing."""
    if json_path is None:
        return
    found = [row if isinstance(row, dict) else dataclasses.asdict(row) for row in rows]
    write_json(dataclasses.asdict(dataclasses.replace(record, rows=found)), json_path)


def write_json(content: dict[str, Any], json_path: str) -> None:
    """Writes `content` to the file, or to standard output for "-"."""
    text = json.dumps(content, indent=1) + "\n"
    if json_path == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        Path(json_path).write_text(text)


def alternate(runs: Sequence[Run], *, rounds: int = 15, limit_seconds: float = 60.0, device: str = "cpu") -> Timing:
    """Times all of `runs` in turns, for `rounds` rounds or until the time limit, but at least three. Warm them up before."""
    taken: list[list[float]] = [[] for _ in runs]
    deadline = time.perf_counter() + limit_seconds
    while len(taken[0]) < min(rounds, 3) or (len(taken[0]) < rounds and time.perf_counter() < deadline):
        for run, times in zip(runs, taken, strict=True):
            times.append(seconds(run, device))
    return Timing(tuple(map(statistics.median, taken)), len(taken[0]))


def seconds(run: Run, device: str = "cpu") -> float:
    """Wall-clock seconds of one run, with the work it left on the GPU, but without freeing what it returns."""
    start = time.perf_counter()
    kept = run()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    del kept
    return elapsed


def peak_mb(run: Run, device: str = "cpu") -> float | None:
    """By how many megabytes memory (the GPU's for "cuda") grows at the run's peak; None if the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier runs freed would hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size (proc(5))
    except (OSError, AttributeError):
        return None
    before_mb = status_mb("VmRSS")
    run()
    return status_mb("VmHWM") - before_mb


def status_mb(name: str) -> float:
    """A size in /proc/self/status in MB: VmRSS, VmHWM (its peak), RssAnon, RssFile, …"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / 1e6


def matmul_ceilings(
    shapes: Iterable[Shape] = PAPER_SHAPES,
    precisions: Iterable[str] = ("float32", "bfloat16"),
    device: str = "cpu",
    budget_seconds: float = 0.5,
) -> dict[str, dict[str, float]]:
    """Precision → "n x k x m" → the best GFLOP/s of a single product; each is tried for about `budget_seconds`."""
    return {
        precision: {" x ".join(map(str, shape)): _best_gflops(shape, precision, device, budget_seconds) for shape in shapes}
        for precision in precisions
    }


def _best_gflops(shape: Shape, precision: str, device: str, budget_seconds: float) -> float:
    n, k, m = shape
    a, b = (torch.randn(*size, device=device).to(getattr(torch, precision)) for size in ((n, k), (k, m)))
    product = lambda: a @ b  # noqa: E731
    best, deadline = seconds(product, device), time.perf_counter() + budget_seconds
    for _ in range(3):
        best = min(best, seconds(product, device))
    while time.perf_counter() < deadline:
        best = min(best, seconds(product, device))
    return 2 * n * k * m / best / 1e9


def describe_machine() -> Machine:
    """Describes this machine and its load."""
    info = _cpu_info()
    has = set(info.get("flags", "").split())
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        flags=[flag for flag in FLAGS if flag in has],
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        load_average=os.getloadavg()[0],
    )


def _cpu_info() -> dict[str, str]:
    """The fields of /proc/cpuinfo for the first core; empty if the file does not exist."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {}
