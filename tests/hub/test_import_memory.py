"""Folders of 3 GB are imported in less than 500 MB of memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published_writers import padded, save_tensordict, trajectory

from m3dt_agent import tasks

BIG = """
    import re, sys
    from pathlib import Path
    from m3dt_agent.hub.convert_data import import_datasets
    summaries = import_datasets(sys.argv[1], sys.argv[2], sys.argv[3])
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
    print(sum(s.steps for s in summaries), peak)
"""


def write_big_tdmpc2(folder: Path) -> int:
    """3 GB in two files of random numbers, 12 tasks of 2,000 episodes each; returns the steps."""
    rng = np.random.default_rng(0)
    for chunk in range(2):
        indices = np.arange(chunk * 12, chunk * 12 + 12)
        episodes = len(indices) * 2000
        tensors = {
            "obs": rng.standard_normal((episodes, 501, 24), np.float32),
            "action": rng.random((episodes, 501, 6), np.float32) * 2 - 1,
            "reward": rng.standard_normal((episodes, 501), np.float32),
            "task": np.repeat(np.repeat(indices, 2000)[:, None], 501, axis=1).astype(np.int32),
        }
        for k, i in enumerate(indices):
            task, rows = tasks.TASKS[50 + i], slice(k * 2000, k * 2000 + 2000)
            tensors["obs"][rows, :, task.obs_dim :], tensors["action"][rows, 1:, task.act_dim :] = 0, 0
        tensors["action"][:, 0], tensors["reward"][:, 0] = np.nan, np.nan
        save_tensordict(folder / f"chunk_{chunk}.pt", {key: torch.from_numpy(values) for key, values in tensors.items()})
    return 24 * 2000 * 500


def write_big_mt160(folder: Path) -> int:
    """3 GB in 16,000 files of random numbers, of 8 tasks; returns the steps."""
    one = trajectory(tasks.get("push"), 500, 0)
    for task in tasks.by_domain("metaworld")[:8]:
        (folder / task.published_name).mkdir(parents=True)
        for i in range(2000):
            np.savez(
                folder / task.published_name / f"{i}.npz",
                observations=one["observations"][:-1],
                actions=padded(one["actions"], 8),
                rewards=one["rewards"] + i,
                dones=np.arange(500) == 499,
            )
    return 8 * 2000 * 500


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "write"), [("mt160", write_big_mt160), ("tdmpc2", write_big_tdmpc2)])
def test_3_gb_are_imported_in_less_than_500_mb(tmp_path: Path, name: str, write: Callable[..., int]) -> None:
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of disk")
    try:
        steps = write(tmp_path / "in")
        assert sum(file.stat().st_size for file in (tmp_path / "in").rglob("*") if file.is_file()) > 3e9
        arguments = [sys.executable, "-c", textwrap.dedent(BIG), name, str(tmp_path / "in"), str(tmp_path / "root")]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
        counted, peak = done.stdout.split()
        print(f"{name}: {peak} MB")
        assert int(counted) == steps
        assert float(peak) < 500
    finally:
        shutil.rmtree(tmp_path)
