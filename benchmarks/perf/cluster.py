"""Measures what a Ray cluster costs: seconds per job, bytes per expert, and the CPU time of the waiting driver.

    python -m benchmarks.perf.cluster [--experts 48] [--address local] [--json [FILE]] [--quick]

The same jobs run in local processes for comparison. The cluster is on this machine unless `--address` names another. Workers
have started and imported what they need before anything is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.shipped import ShippedBank, ship
from m3dt_agent.config import ModelConfig
from m3dt_agent.jobs import Engine, LocalProcesses, RayCluster, opened, run_jobs

from .bank import make_bank
from .frame import add_options, begin, finish, table_wanted

NAP_JOBS, NAP_SECONDS = 40, 1.0


@dataclass(frozen=True)
class Nap:
    """A job that does nothing for a while."""

    seconds: float
    name: str = "nap"

    def __call__(self) -> None:
        time.sleep(self.seconds)


@dataclass(frozen=True)
class OpenBank:
    """A job that opens the bank it was sent, and returns the seconds that took."""

    bank: ShippedBank
    name: str = "opening a bank"

    def __call__(self) -> float:
        began = time.perf_counter()
        self.bank.open()
        return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Row:
    """What one engine costs.

    dispatch_ms: wall-clock milliseconds per empty job. driver_cpu: CPU seconds per second that the driver uses while NAP_JOBS
    jobs of NAP_SECONDS run.
    """

    engine: str
    dispatch_ms: float
    jobs: int
    driver_cpu: float


def dispatch(engine: Engine, count: int) -> float:
    """Wall-clock seconds per empty job, measured after 50 others."""
    results = run_jobs([Nap(0.0)] * (count + 50), engine)
    for _ in range(50):
        next(results)
    began = time.perf_counter()
    for _ in results:
        pass
    return (time.perf_counter() - began) / count


def driver_cpu(engine: Engine, count: int) -> float:
    """CPU seconds per second that all threads of this process use while naps run."""
    began, before = time.perf_counter(), _cpu_seconds()
    list(run_jobs([Nap(NAP_SECONDS)] * count, engine))
    return (_cpu_seconds() - before) / (time.perf_counter() - began)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(engine: Engine, quick: bool) -> Row:
    """Measures an open engine."""
    jobs = 50 if quick else 1000
    return Row(type(engine).__name__, 1e3 * dispatch(engine, jobs), jobs, driver_cpu(engine, 4 if quick else NAP_JOBS))


def bank_transfer(engine: RayCluster, folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Bytes that one expert's training sends to a node and back, and the seconds that a bank takes to get to a node."""
    bank = ExpertBank.open(make_bank(folder, config))
    base = bank.manifest.with_experts(())
    began = time.perf_counter()
    shipped = ship(bank, engine)
    put = time.perf_counter() - began
    (_, first), (_, second) = run_jobs([OpenBank(shipped)] * 2, dataclasses.replace(engine, cpus_per_job=1))
    return {
        "experts": config.n_experts,
        "bytes_of_bank": sum(record.bytes for record in bank.manifest.files.values()),
        "bytes_to_a_node_for_training": sum(record.bytes for record in base.files.values()) + len(base.to_json()),
        "bytes_back_per_expert": bank.manifest.files["experts/000.safetensors"].bytes,
        "seconds_into_the_object_store": put,
        "seconds_to_open_first": max(first, second),
        "seconds_to_open_again": min(first, second),
    }


def show(rows: list[Row], sent: dict[str, Any]) -> None:
    """Prints the tables."""
    for row in rows:
        print(
            f"{row.engine:16s} {row.dispatch_ms:7.2f} ms per job ({row.jobs} empty jobs)   "
            f"driver {100 * row.driver_cpu:.1f}% of a core while {NAP_JOBS} jobs of {NAP_SECONDS:.0f} s run"
        )
    for name, value in sent.items():
        print(f"{name.replace('_', ' '):36s} {value:>15,.2f}" if isinstance(value, float) else f"{name:36s} {value:>15,}")


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="local", help="address of the cluster, as for m3dt's --ray")
    parser.add_argument("--experts", type=int, default=48)
    add_options(parser)
    arguments = parser.parse_args()
    config = ModelConfig.preset("paper", n_experts=2 if arguments.quick else arguments.experts)
    record = begin("cluster", address=arguments.address, model=config.to_dict())
    engine = RayCluster(arguments.address)
    with opened(engine), tempfile.TemporaryDirectory() as folder:
        rows = [measure(engine, arguments.quick), measure(LocalProcesses(2), arguments.quick)]
        sent = bank_transfer(engine, Path(folder), config)
    if table_wanted(arguments.json):
        show(rows, sent)
    finish(record, [*rows, sent], json_path=arguments.json)


if __name__ == "__main__":
    main()
