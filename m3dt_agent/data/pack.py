"""Packs a dataset into one flat float32 file of steps for fast reads; a pack is rebuilt when its source's content changes.

    <cache>/<task>/<source>-v0.lock                locked while the dataset is packed
    <cache>/<task>/<source>-v0.source.json         the source's hash, with the time and the files it was computed from
    <cache>/<task>/<source>-v0-<sha256[:16]>/
        steps.f32              N steps, all episodes end to end:  [ observation (obs_dim) | action (act_dim) | return-to-go ]
        episodes.safetensors   offsets, returns, success, obs_mean, obs_std, prompt_episodes (as in PackedTask),
                               stop_after_success (1)
        pack.json              the source, and the expected size and hash of the two files

A return-to-go is the undiscounted sum of the rewards from its step on, added up in float64. The folder's name has the SHA-256
of the source's two files, and the folder appears whole or not at all. The source is hashed again if its size, times or inode
have changed, or if it was modified so shortly before the last hash that the clock could not tell.

Windows are read with `pread` and not through a memory map, for two reasons. Pages read through a map count as memory of this
process as long as the map lives, and training reads everything. And a window that lies on two pages costs two cold reads
through a map but one from the file. Measured with windows of 3.5 kB from a 3 GB file: cold, `pread` makes at least 12,000 reads
a second, a map 7,000 to 8,000; warm, `pread` makes 330,000, a map 640,000, or 110,000 if it gives its pages back in time. The
map is there to look at whole episodes. It is advised MADV_RANDOM: with the default read-ahead a 12 GB file gave 120 cold reads
a second instead of 4,400.
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
_CLOCK_SLACK_NS = 3_000_000_000  # a file modified so shortly before it was hashed is hashed again


class StepsFile:
    """An open file of packed steps, each of `width` float32. Any thread or fork can read it, even after it was deleted.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width, self._step_bytes = path, width, width * np.dtype(np.float32).itemsize
        self._file = path.open("rb", buffering=0)
        self._descriptor = self._file.fileno()
        weakref.finalize(self, self._file.close)

    def read(self, first: int, count: int) -> bytes:
        """The bytes of steps first … first + count - 1.

        Raises:
            DatasetError: the file has fewer steps.
        """
        size = count * self._step_bytes
        content = os.pread(self._descriptor, size, first * self._step_bytes)
        if len(content) != size:
            left = os.fstat(self._descriptor).st_size // self._step_bytes
            raise DatasetError(
                f"{self.path} was cut while in use: steps {first} … {first + count - 1} were asked for; {left} are left"
            )
        return content

    def map(self) -> NDArray[np.float32]:
        """All steps as a read-only, memory-mapped array (N, width), set up for reads at random places."""
        mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):  # absent outside Linux and the BSDs
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, np.float32).reshape(-1, self.width)


@dataclass(frozen=True, slots=True, eq=False)
class PackedTask:
    """The packed data of one task: N steps of M episodes. Episode m is steps offsets[m] … offsets[m+1] - 1."""

    task: TaskSpec
    steps: NDArray[np.float32]  # (N, obs_dim + act_dim + 1), read-only memory map; the last column is the return-to-go
    offsets: NDArray[np.int64]  # (M+1,)
    returns: NDArray[np.float64]  # (M,) undiscounted
    success: NDArray[np.bool_] | None  # (M,) whether an episode succeeded; None where the task has no success
    stop_after_success: int  # episodes ended on this many-th successful step; 0: they have full length
    obs_mean: NDArray[np.float64]  # (obs_dim,) over all steps
    obs_std: NDArray[np.float64]  # (obs_dim,) over all steps, population standard deviation
    prompt_episodes: tuple[int, ...] | None = None  # those that the dataset names; None: it names none
    file: StepsFile | None = None  # what `steps` maps; None: `steps` is in memory

    def read(self, first: int, count: int, length: int) -> bytes:
        """The bytes of steps first … first + count - 1, left-padded with zeros to `length` steps.

        Raises:
            DatasetError: the file was cut since it was opened.
        """
        content = self.steps[first : first + count].tobytes() if self.file is None else self.file.read(first, count)
        return content if count == length else content.rjust(len(content) // count * length, b"\0")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps per episode, (M,)."""
        return np.diff(self.offsets)


def pack_dataset(path: Path | str, task: TaskSpec, cache: Path | None = None) -> PackedTask:
    """Opens the packed copy of the dataset at `path`; packs the dataset first unless there is a pack of its present content.

    cache: where packs are stored; None: `.packed` in the Minari root of the dataset.

    Raises:
        DatasetError: the dataset is missing or does not validate; the message lists its problems.
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
    """Values that change whenever one of the source's files does; unlike mtime, ctime cannot be set back."""
    stats = [(path / file).stat() for file in (METADATA_FILE, STEPS_FILE)]
    return [[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]


def _source_key(path: Path, folder: Path) -> str:
    """SHA-256 of the source's files: the stored one if they cannot have changed since, else computed and stored."""
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
    """What `pack.json` must hold if the pack in `folder` is whole and was made from this source."""
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
        require_space(scratch, (path / STEPS_FILE).stat().st_size)  # a pack is smaller than its HDF5 file
        index = _EpisodeIndex(task.obs_dim)
        with (scratch / _STEPS).open("wb") as steps:
            for episode in _valid_episodes(path, task, metadata):
                steps.write(_packed_steps(episode).tobytes())
                index.add(episode)
        index.save(scratch / _EPISODES, metadata.get("stop_after_success", 0), read_prompt_episodes(metadata))
        (scratch / _PACK).write_text(json.dumps(_description(scratch, source, task)))
        if _stamp(path) != stamp:
            raise DatasetError(f"{path} changed while it was being packed; pack it again")
        shutil.rmtree(target, ignore_errors=True)  # a damaged pack, or it would have been opened
        publish(scratch, target)


def _valid_episodes(path: Path, task: TaskSpec, metadata: dict[str, Any]) -> Iterator[Episode]:
    """Reads the episodes and yields them until one has a problem; raises all problems together at the end."""
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


def _packed_steps(episode: Episode) -> NDArray[np.float32]:
    """The steps of an episode as they are stored, (L, obs_dim + act_dim + 1)."""
    to_go = np.cumsum(episode.rewards[::-1], dtype=np.float64)[::-1]
    return np.concatenate([episode.observations[:-1], episode.actions, to_go[:, None].astype(np.float32)], axis=1)


class _EpisodeIndex:
    """Collects what `episodes.safetensors` holds.

    The observations' mean and standard deviation are merged episode by episode (Chan et al. 1979, "Updating formulae and a
    pairwise algorithm for computing sample variances").
    """

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
    """Removes packs of earlier contents of the dataset. A process that has one open can go on reading it."""
    for older in target.parent.glob(f"{name}-{'?' * 16}"):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)


def _open(target: Path, task: TaskSpec) -> PackedTask:
    index, file = load_file(target / _EPISODES), StepsFile(target / _STEPS, task.obs_dim + task.act_dim + 1)
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
