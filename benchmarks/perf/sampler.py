"""Measures windows per second of the batch sampler and of plain Minari iteration, and the memory that a large pack needs.

    python -m benchmarks.perf.sampler [--gigabytes 5] [--seconds 10] [--folder DIR] [--json [FILE]] [--quick]

Eight tasks of all four domains have packs of synthetic steps, together of the given size. Windows and prompts are those of the
paper preset, whose batch is 16 windows of one task. "cold" draws batches that were not drawn before, from packs that are not in
the page cache. "warm" draws the same 20,000 windows (160 MB of pages) again and again, so that it does not depend on how much
of the pack fits into memory. The warm draws take turns with the baseline, and their figures are medians over the turns. The
baseline uses Minari alone: it samples an episode, sums its returns-to-go, cuts a window, pads and clips it. It reads a cached
dataset of 200 episodes of one task.

Resident memory is RssAnon + RssFile (anonymous and mapped), taken before the sampler is made and after all cold draws. With a
pack larger than the available memory it must stay constant; try `--gigabytes 30 --seconds 60`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3dt_agent import tasks
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.data.pack import PackedTask, StepsFile
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.tasks import TaskSpec

from .frame import Run, add_options, alternate, begin, finish, status_mb, table_wanted

TASKS = ("reach", "push", "pick-place", "door-open", "walker-run", "cheetah-run", "ant-dir-3", "cheetah-vel-20")
SETTINGS = {
    "16 of one task": (16, 1),
    "16 of all tasks": (16, None),
    "768 of all tasks": (768, None),
}  # windows, tasks_per_batch
WARM_WINDOWS, TURN_WINDOWS, TURNS = 20_000, 15_360, 25
BASELINE_EPISODES, BASELINE_WINDOWS, BASELINE_BATCHES = 200, 16, 10


@dataclass(frozen=True, slots=True)
class Row:
    """The speed of drawing one kind of batch."""

    what: str
    windows: int  # per batch
    windows_per_second: float
    milliseconds: float  # per batch
    over_baseline: float | None  # in windows per second; None for the cold draws


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory (anonymous and mapped) before and after drawing `windows` windows of a pack."""

    pack_mb: float
    available_mb: float  # MemAvailable, before the first draw
    windows: int
    before_mb: float
    after_mb: float
    growth_mb: float


def write_steps(path: Path, task: TaskSpec, n_bytes: int) -> int:
    """Writes about `n_bytes` of synthetic episodes as packed steps; returns the number of episodes."""
    width = task.obs_dim + task.act_dim + 1
    block = np.random.default_rng(0).uniform(-1, 1, (task.max_episode_steps, width)).astype(np.float32)
    episodes = max(4, n_bytes // block.nbytes)
    with path.open("wb") as file:
        for i in range(episodes):
            block[0, 0] = i
            file.write(block.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return episodes


def synthetic_datasets(folder: Path, n_bytes: int) -> TaskDatasets:
    """Writes and opens the packs of the eight tasks, with none of their pages in memory."""
    specs = tasks.resolve(TASKS)
    packed = []
    for task in specs:
        path = folder / f"{task.name}.f32"
        episodes = write_steps(path, task, n_bytes // len(specs))
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        steps = StepsFile(path, task.obs_dim + task.act_dim + 1)
        packed.append(
            PackedTask(
                task=task,
                stored=steps,
                offsets=np.arange(episodes + 1) * task.max_episode_steps,
                returns=np.arange(episodes, dtype=np.float64),
                success=None,
                stop_after_success=0,
                obs_mean=np.zeros(task.obs_dim),
                obs_std=np.ones(task.obs_dim),
            )
        )
    return TaskDatasets(specs, tuple(packed))


def minari_draw(folder: Path, config: ModelConfig) -> Callable[[], object]:
    """The baseline: a function that draws one batch."""
    import minari

    task = tasks.get("reach")
    L, T, B = task.max_episode_steps, config.context_length, BASELINE_WINDOWS
    rng, last = np.random.default_rng(0), np.arange(L) == L - 1

    def episode() -> Episode:
        numbers = rng.uniform(-1, 1, (L + 1, task.obs_dim)).astype(np.float32)
        return Episode(numbers, numbers[:-1, : task.act_dim], numbers[:-1, 0], ~last & last, last, last)

    path = write_dataset(folder, task, "baseline", (episode() for _ in range(BASELINE_EPISODES)), metadata={})
    dataset = minari.MinariDataset(path / "data")
    dataset.set_seed(0)

    def draw() -> object:
        states = np.zeros((B, T, config.state_dim), np.float32)
        actions = np.zeros((B, T, config.act_dim), np.float32)
        returns_to_go = np.zeros((B, T, 1), np.float32)
        for b, found in enumerate(dataset.sample_episodes(B)):
            to_go = np.cumsum(found.rewards[::-1])[::-1]
            start = int(rng.integers(len(found.rewards)))
            real = min(T, len(found.rewards) - start)
            states[b, T - real :, : task.obs_dim] = np.clip(found.observations[start : start + real], -10, 10)
            actions[b, T - real :, : task.act_dim] = found.actions[start : start + real]
            returns_to_go[b, T - real :, 0] = to_go[start : start + real] / task.return_scale
        return states, actions, returns_to_go

    return draw


def several(draw: Callable[[], object], times: int) -> Run:
    """A run that draws `times` batches, because one alone is too short to be timed."""

    def run() -> None:
        for _ in range(times):
            draw()

    return run


def warm_draw(sampler: BatchSampler) -> Callable[[], object]:
    """A function that draws the sampler's first batches, WARM_WINDOWS windows, in an endless cycle; all are drawn once here."""
    steps = range(-(-WARM_WINDOWS // sampler.batch_size))
    for step in steps:
        sampler.sample(step)
    endless = itertools.cycle(steps)
    return lambda: sampler.sample(next(endless))


def measure_cold(sampler: BatchSampler, seconds: float) -> Row:
    """Draws batches that nothing else draws, for `seconds`."""
    start, drawn = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        sampler.sample(10_000_000 + drawn)
        drawn += 1
    B = sampler.batch_size
    return Row(f"cold, {next(iter(SETTINGS))}", B, B * drawn / elapsed, 1e3 * elapsed / drawn, None)


def measure_warm(samplers: dict[str, BatchSampler], baseline: Callable[[], object], seconds: float) -> list[Row]:
    """Times the baseline and all samplers in turns."""
    sizes = [BASELINE_WINDOWS, *(sampler.batch_size for sampler in samplers.values())]
    batches = [BASELINE_BATCHES, *(TURN_WINDOWS // sampler.batch_size for sampler in samplers.values())]
    draws = [baseline, *map(warm_draw, samplers.values())]
    runs = [several(draw, times) for draw, times in zip(draws, batches, strict=True)]
    medians = alternate(runs, rounds=TURNS, limit_seconds=seconds).medians
    rates = [size * times / median for size, times, median in zip(sizes, batches, medians, strict=True)]
    names = ["Minari", *(f"warm, {name}" for name in samplers)]
    return [
        Row(name, size, rate, 1e3 * size / rate, rate / rates[0]) for name, size, rate in zip(names, sizes, rates, strict=True)
    ]


def available_mb() -> float:
    """How much can be allocated without swapping (MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024 / 1e6


def resident_mb() -> float:
    return status_mb("RssAnon") + status_mb("RssFile")


def measure(folder: Path, gigabytes: float, seconds: float) -> tuple[list[Row], Memory]:
    """Measures everything."""
    config = ModelConfig.preset("paper")
    data = synthetic_datasets(folder, int(gigabytes * 1e9))
    available, before = available_mb(), resident_mb()
    statistics, prompts = compute_statistics(data), make_prompts(data, config.prompt_length)
    samplers = {
        name: BatchSampler(data, statistics, prompts, config, batch_size=B, tasks_per_batch=n, seed=0, stage="backbone")
        for name, (B, n) in SETTINGS.items()
    }
    cold = measure_cold(next(iter(samplers.values())), seconds)
    after, drawn = resident_mb(), round(cold.windows_per_second * seconds)
    pack = sum(packed.steps.nbytes for packed in data.packed) / 1e6
    warm = measure_warm(samplers, minari_draw(folder / "minari", config), seconds)
    return [cold, *warm], Memory(pack, available, drawn, before, after, after - before)


def table(rows: list[Row], memory: Memory) -> str:
    """The table as text."""
    lines = [
        f"{row.what:24s} {row.windows_per_second:10,.0f} windows/s {row.milliseconds:8.3f} ms a batch"
        + ("" if row.over_baseline is None else f" {row.over_baseline:8.1f} x Minari")
        for row in rows
    ]
    packs = f"packs of {memory.pack_mb:,.0f} MB, {memory.available_mb:,.0f} MB available"
    resident = f"resident {memory.before_mb:,.0f} MB, after {memory.windows:,} cold windows {memory.after_mb:,.0f} MB"
    return "\n".join([*lines, f"{packs}; {resident}: {memory.growth_mb:+,.0f} MB"])


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of the cold draws, and at most of the warm ones")
    parser.add_argument("--folder", type=Path, help="where the packs are written and deleted again; default: the system's")
    args = parser.parse_args()
    gigabytes, seconds = (0.2, 1.0) if args.quick else (args.gigabytes, args.seconds)
    record = begin("sampler", gigabytes=gigabytes, seconds=seconds, quick=args.quick)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows, memory = measure(Path(folder), gigabytes, seconds)
    if table_wanted(args.json):
        print(table(rows, memory))
    finish(record, [*rows, memory], json_path=args.json)


if __name__ == "__main__":
    main()
