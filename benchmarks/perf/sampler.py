"""Windows per second of the batch sampler and of plain Minari iteration, in one run, and resident memory with a large pack.

    python -m benchmarks.perf.sampler [--gigabytes 5] [--seconds 10] [--batch-size 16] [--folder DIR] [--json]

Eight tasks of all four domains share packs of synthetic steps of the given size. "cold" is measured with their pages dropped
from the page cache, "warm" after all of them have been read once. The baseline is what one writes with Minari alone: sample an
episode, add up its returns-to-go, cut a window, pad and clip it; it reads a dataset of 200 episodes of one task, all cached.
Resident memory is split into the process's own (anonymous) and mapped pages of the packs, which the kernel takes back at will.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from m3dt_agent import tasks
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import BatchSampler
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.data.pack import PackedTask, map_steps
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.tasks import TaskSpec

TASKS = ("reach", "push", "pick-place", "door-open", "walker-run", "cheetah-run", "ant-dir-3", "cheetah-vel-20")
BASELINE_EPISODES, BASELINE_BATCH = 200, 16


def write_steps(path: Path, task: TaskSpec, n_bytes: int) -> int:
    """Whole synthetic episodes in packed rows, about `n_bytes` of them; returns how many episodes."""
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
    """The eight tasks' packs, freshly written and mapped; none of their pages is in memory."""
    specs = tasks.resolve(TASKS)
    packed = []
    for task in specs:
        path = folder / f"{task.name}.f32"
        episodes = write_steps(path, task, n_bytes // len(specs))
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        packed.append(
            PackedTask(
                task=task,
                steps=map_steps(path, task),
                offsets=np.arange(episodes + 1) * task.max_episode_steps,
                returns=np.arange(episodes, dtype=np.float64),
                success=None,
                stop_after_success=0,
                obs_mean=np.zeros(task.obs_dim),
                obs_std=np.ones(task.obs_dim),
            )
        )
    return TaskDatasets(specs, tuple(packed))


def rate(draw: Callable[[int], int], seconds: float) -> float:
    """Windows per second of `draw(step)`, which returns how many it drew, over about `seconds`."""
    begin, step, windows = time.perf_counter(), 0, 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        windows += draw(step)
        step += 1
    return windows / elapsed


def minari_rate(folder: Path, config: ModelConfig, seconds: float) -> float:
    """The baseline's windows per second."""
    import minari

    task = tasks.get("reach")
    L = task.max_episode_steps
    rng, last = np.random.default_rng(0), np.arange(L) == L - 1

    def episode() -> Episode:
        numbers = rng.uniform(-1, 1, (L + 1, task.obs_dim)).astype(np.float32)
        return Episode(numbers, numbers[:-1, : task.act_dim], numbers[:-1, 0], ~last & last, last, last)

    path = write_dataset(folder, task, "baseline", (episode() for _ in range(BASELINE_EPISODES)), metadata={})
    dataset = minari.MinariDataset(path / "data")
    dataset.set_seed(0)

    def draw(_: int) -> int:
        T = config.context_length
        states = np.zeros((BASELINE_BATCH, T, config.state_dim), np.float32)
        actions = np.zeros((BASELINE_BATCH, T, config.act_dim), np.float32)
        returns_to_go = np.zeros((BASELINE_BATCH, T, 1), np.float32)
        for b, found in enumerate(dataset.sample_episodes(BASELINE_BATCH)):
            to_go = np.cumsum(found.rewards[::-1])[::-1]
            start = int(rng.integers(len(found.rewards)))
            real = min(T, len(found.rewards) - start)
            states[b, T - real :, : task.obs_dim] = np.clip(found.observations[start : start + real], -10, 10)
            actions[b, T - real :, : task.act_dim] = found.actions[start : start + real]
            returns_to_go[b, T - real :, 0] = to_go[start : start + real] / task.return_scale
        return BASELINE_BATCH

    return rate(draw, seconds)


def resident_megabytes() -> dict[str, float]:
    """Anonymous and file-backed resident memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {
        key: int(value.split()[0]) / 1e3 for key, _, value in (line.partition(":") for line in lines) if key.startswith("Rss")
    }
    return {"anonymous": values["RssAnon"], "mapped": values["RssFile"]}


def measure(folder: Path, gigabytes: float, seconds: float, batch_size: int) -> dict[str, object]:
    """All figures of one run."""
    config = ModelConfig.preset("paper")
    data = synthetic_datasets(folder, int(gigabytes * 1e9))
    before = resident_megabytes()
    sampler = BatchSampler(
        data,
        compute_statistics(data),
        make_prompts(data, config.prompt_length),
        config,
        batch_size=batch_size,
        tasks_per_batch=None,
        seed=0,
        stage="backbone",
    )

    def draw(step: int) -> int:
        return len(sampler.sample(step).tasks)

    cold = rate(draw, seconds)
    for packed in data.packed:
        (folder / f"{packed.task.name}.f32").read_bytes()
    warm = rate(lambda step: draw(step + 10_000_000), seconds)
    after = resident_megabytes()
    minari = minari_rate(folder / "minari", config, seconds)
    return {
        "pack_gigabytes": sum(packed.steps.nbytes for packed in data.packed) / 1e9,
        "batch_size": batch_size,
        "windows_per_second": {"cold": cold, "warm": warm, "minari": minari},
        "warm_over_minari": warm / minari,
        "resident_megabytes": {"before": before, "after": after},
    }


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the pack is written and deleted again (default: the system's)"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.gigabytes, arguments.seconds, arguments.batch_size)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
