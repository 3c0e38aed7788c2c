"""Packed steps: one flat float32 file per dataset, memory-mapped, built once per content of its source.

    <cache>/<task>/<source>-v0.lock                held while it is packed
    <cache>/<task>/<source>-v0.source.json         the source's hash, and when it was taken of which files
    <cache>/<task>/<source>-v0-<sha256[:16]>/
        steps.f32              N rows, all episodes end to end:  [ observation (obs_dim) | action (act_dim) | return-to-go ]
        episodes.safetensors   offsets, returns, success, obs_mean, obs_std, prompt_episodes (as in PackedTask),
                               stop_after_success (1)
        pack.json              what it was made from, and what its files must be

A return-to-go is the undiscounted sum of the rewards from its step on, added up in float64. The folder is keyed by the SHA-256
of the source's two files and appears whole or not at all. The source is hashed again whenever its size, times or inode differ
from what they were, or are so young that a change could hide in the clock's granularity.

Windows are read with `pread`, not through the map: what is read through a map counts as this process's memory for as long as
the map lives, and training reads everything; and a window on two pages is two cold reads of a map, one of a file. Measured with
windows of 3.5 kB of a 3 GB file: cold 12,000 a second or more against 7,000 to 8,000; warm 330,000 against 640,000, 110,000 if
the map's pages are given back in time. The map is for looking at whole episodes; it is advised MADV_RANDOM, since with the
default read-ahead a 12 GB file gave 120 cold reads a second instead of 4,400.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ..disk import disk_space_errors, file_lock, publish, require_space, scratch_folder, write_file
from ..errors import DatasetError
from ..tasks import TaskSpec
from .episodes import Episode, to_episode
from .validation import (
    METADATA_FILE,
    STEPS_FILE,
    count_problems,
    metadata_problems,
    read_metadata,
    read_prompt_episodes,
    scan_episodes,
)

_FORMAT = 2
_STEPS, _EPISODES, _PACK = "steps.f32", "episodes.safetensors", "pack.json"
_SHOWN_PROBLEMS = 10
_CLOCK_SLACK_NS = 3_000_000_000  # a file touched this shortly before it was hashed is hashed again next time


class StepsFile:
    """A file of packed steps, rows of `width` float32, held open: any thread or fork can read it, also when its name is gone.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width, self._row_bytes = path, width, width * np.dtype(np.float32).itemsize
        self._file = path.open("rb", buffering=0)
        self._descriptor = self._file.fileno()
        weakref.finalize(self, self._file.close)

    def read(self, first: int, count: int) -> bytes:
        """Rows first … first + count - 1.

        Raises:
            DatasetError: the file ends before them.
        """
        size = count * self._row_bytes
        rows = os.pread(self._descriptor, size, first * self._row_bytes)
        if len(rows) != size:
            left = os.fstat(self._descriptor).st_size // self._row_bytes
            raise DatasetError(f"{self.path} was cut while in use: rows {first} … {first + count - 1} of the {left} left")
        return rows

    def map(self) -> NDArray[np.float32]:
        """All rows as a read-only array (N, width), memory-mapped, advised for reads in random places."""
        mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):  # absent outside Linux and the BSDs
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, np.float32).reshape(-1, self.width)


@dataclass(frozen=True, slots=True, eq=False)
class PackedTask:
    """The packed episodes of one task: N steps of M episodes; those of episode m are rows offsets[m] … offsets[m+1] - 1."""

    task: TaskSpec
    steps: NDArray[np.float32]  # (N, obs_dim + act_dim + 1), read-only memory map; the last column is the return-to-go
    offsets: NDArray[np.int64]  # (M+1,)
    returns: NDArray[np.float64]  # (M,) undiscounted
    success: NDArray[np.bool_] | None  # (M,) at any step; None where the task has none
    stop_after_success: int  # steps an episode went on after its first success; 0: full length
    obs_mean: NDArray[np.float64]  # (obs_dim,) over all steps
    obs_std: NDArray[np.float64]  # (obs_dim,) over all steps, population deviation
    prompt_episodes: tuple[int, ...] | None = None  # those that the dataset names as its prompts; None: it names none
    file: StepsFile | None = None  # what `steps` maps; None: `steps` is in memory

    def read(self, first: int, count: int, length: int) -> bytes:
        """Rows first … first + count - 1 of `steps`, after `length` - count rows of zeros.

        Raises:
            DatasetError: the file was cut since it was opened.
        """
        rows = self.steps[first : first + count].tobytes() if self.file is None else self.file.read(first, count)
        return rows if count == length else rows.rjust(len(rows) // count * length, b"\0")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps per episode, (M,)."""
        return np.diff(self.offsets)


def pack_dataset(path: Path | str, task: TaskSpec, cache: Path | None = None) -> PackedTask:
    """The packed copy of the dataset at `path`, built first where there is none that fits the source as it is now.

    `cache` is where packs are kept; by default `.packed` in the Minari root that holds the dataset.

    Raises:
        DatasetError: a dataset that does not validate (its problems are listed), or is missing.
        DiskSpaceError: the disk is full.
    """
    path = Path(path).absolute()
    folder = (path.parents[2] / ".packed" if cache is None else Path(cache)) / task.name
    read_metadata(path)
    with disk_space_errors(folder / path.name), file_lock(folder / f"{path.name}.lock"):
        source = _source_key(path, folder)
        target = folder / f"{path.name}-{source[:16]}"
        if not _is_whole(target, source, task):
            _build(path, task, source, target)
            _remove_older(target, path.name)
        return _open(target, task)


def _stamp(path: Path) -> list[list[int]]:
    """What changes when one of the source's files does; ctime cannot be set back."""
    stats = [(path / file).stat() for file in (METADATA_FILE, STEPS_FILE)]
    return [[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]


def _source_key(path: Path, folder: Path) -> str:
    """SHA-256 of the source's files: the remembered one if nothing can have changed since, else computed."""
    memory = folder / f"{path.name}.source.json"
    stamp = _stamp(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text())
        if known["stamp"] == stamp and max(s[4] for s in stamp) + _CLOCK_SLACK_NS < known["hashed_at"]:
            return str(known["sha256"])
    hashed_at = time.time_ns()
    digest = hashlib.sha256()
    for file in (METADATA_FILE, STEPS_FILE):
        with (path / file).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    write_file(memory, json.dumps({"stamp": stamp, "hashed_at": hashed_at, "sha256": digest.hexdigest()}).encode())
    return digest.hexdigest()


def _is_whole(target: Path, source: str, task: TaskSpec) -> bool:
    try:
        return bool(json.loads((target / _PACK).read_text()) == _description(target, source, task))
    except (OSError, ValueError):
        return False


def _description(folder: Path, source: str, task: TaskSpec) -> dict[str, Any]:
    """What `pack.json` of the pack in `folder` has to say if it is whole and of this source."""
    return {
        "format": _FORMAT,
        "task": task.name,
        "columns": [task.obs_dim, task.act_dim, 1],
        "source_sha256": source,
        "steps_bytes": (folder / _STEPS).stat().st_size,
        "episodes_sha256": hashlib.sha256((folder / _EPISODES).read_bytes()).hexdigest(),
    }


def _build(path: Path, task: TaskSpec, source: str, target: Path) -> None:
    metadata, stamp = read_metadata(path), _stamp(path)
    with scratch_folder(target.parent) as scratch:
        require_space(scratch, (path / STEPS_FILE).stat().st_size)  # the rows are the same numbers, less HDF5's own
        index = _EpisodeIndex(task.obs_dim)
        with (scratch / _STEPS).open("wb") as steps:
            for episode in _valid_episodes(path, task, metadata):
                steps.write(_rows(episode).tobytes())
                index.add(episode)
        index.save(scratch / _EPISODES, metadata.get("stop_after_success", 0), read_prompt_episodes(metadata))
        (scratch / _PACK).write_text(json.dumps(_description(scratch, source, task)))
        if _stamp(path) != stamp:
            raise DatasetError(f"{path} changed while it was being packed; pack it again")
        shutil.rmtree(target, ignore_errors=True)  # damaged, or it would have been used
        publish(scratch, target)


def _valid_episodes(path: Path, task: TaskSpec, metadata: dict[str, Any]) -> Iterator[Episode]:
    """The episodes, as long as nothing is wrong; what is wrong with any of them is raised at the end, all together."""
    problems = metadata_problems(metadata, task)
    episodes = steps = 0
    for scanned in scan_episodes(path, task):
        problems += scanned.problems
        episodes, steps = episodes + 1, steps + len(scanned.arrays.get("rewards", ()))
        if not problems:
            yield to_episode(scanned)
    problems += count_problems(metadata, episodes, steps)
    if problems:
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DatasetError(
            f"{path} cannot be packed for task {task.name!r}:\n  " + "\n  ".join(problems[:_SHOWN_PROBLEMS]) + more
        )


def _row_width(task: TaskSpec) -> int:
    return task.obs_dim + task.act_dim + 1


def _rows(episode: Episode) -> NDArray[np.float32]:
    to_go = np.cumsum(episode.rewards[::-1], dtype=np.float64)[::-1]
    return np.concatenate([episode.observations[:-1], episode.actions, to_go[:, None].astype(np.float32)], axis=1)


class _EpisodeIndex:
    """What is kept per episode, and the observations' mean and deviation, merged episode by episode (Chan et al., 1979)."""

    def __init__(self, obs_dim: int) -> None:
        self.offsets = [0]
        self.returns: list[float] = []
        self.success: list[bool | None] = []
        self.mean = np.zeros(obs_dim)
        self.squares = np.zeros(obs_dim)  # sum of squared deviations from the mean

    def add(self, episode: Episode) -> None:
        seen, new = self.offsets[-1], episode.length
        states = episode.observations[:-1].astype(np.float64)
        mean = states.mean(axis=0)
        delta = mean - self.mean
        self.squares += ((states - mean) ** 2).sum(axis=0) + delta**2 * (seen * new / (seen + new))
        self.mean += delta * (new / (seen + new))
        self.offsets.append(seen + new)
        self.returns.append(episode.episode_return)
        self.success.append(None if episode.success is None else bool(episode.success.any()))

    def save(self, path: Path, stop_after_success: int, prompt_episodes: tuple[int, ...] | None) -> None:
        arrays = {
            "offsets": np.asarray(self.offsets, np.int64),
            "returns": np.asarray(self.returns, np.float64),
            "obs_mean": self.mean,
            "obs_std": np.sqrt(self.squares / self.offsets[-1]),
            "stop_after_success": np.asarray([stop_after_success], np.int64),
        }
        if None not in self.success:
            arrays["success"] = np.asarray(self.success, np.bool_)
        if prompt_episodes is not None:
            arrays["prompt_episodes"] = np.asarray(prompt_episodes, np.int64)
        save_file(arrays, path)


def _remove_older(target: Path, name: str) -> None:
    """Packs of the same dataset's earlier contents; whoever has one mapped keeps it, the disk space comes back afterwards."""
    for older in target.parent.glob(f"{name}-{'?' * 16}"):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)


def _open(target: Path, task: TaskSpec) -> PackedTask:
    index, file = load_file(target / _EPISODES), StepsFile(target / _STEPS, _row_width(task))
    return PackedTask(
        task=task,
        steps=file.map(),
        offsets=index["offsets"],
        returns=index["returns"],
        success=index.get("success"),
        stop_after_success=int(index["stop_after_success"][0]),
        obs_mean=index["obs_mean"],
        obs_std=index["obs_std"],
        prompt_episodes=tuple(index["prompt_episodes"].tolist()) if "prompt_episodes" in index else None,
        file=file,
    )
