"""Packs a dataset into one flat float32 file of steps for fast reads; a pack is rebuilt when its source's content changes.

    <cache>/<task>/<source>-v0.lock                locked while the dataset is packed
    <cache>/<task>/<source>-v0.source.json         the source's hash, with the time and the files it was computed from
    <cache>/<task>/<source>-v0-<sha256[:16]>/
        steps.f32              N steps, all episodes end to end:  [ observation (obs_dim) | action (act_dim) | return-to-go ]
                               and in labelled packs              [ observation | action | label (act_dim) | return-to-go ]
        episodes.safetensors   offsets, returns, success, statistics of the observations (see `pack_index`)
        pack.json              the source, and the expected size and hash of the two files

<cache> is `.packed` in the Minari root, or a folder of the user's cache if that cannot be written. A return-to-go is the
undiscounted sum of the rewards from its step on, added up in float64. A label is the demonstrator's own action, in datasets
that are marked as labelled; such a pack has another format number, by which older programs pass it over. The folder's name has
the SHA-256 of the source's two files, and the folder appears whole or not at all. The source is hashed again if its size, times
or inode have changed, or if it was modified so shortly before the last hash that the clock could not tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..system.disk import file_lock, path_errors, publish, require_space, scratch_folder, user_path, write_file
from ..system.documents import read_document
from ..tasks import TaskSpec
from .episodes import Episode, to_episode
from .pack_index import IndexBuilder, index_bytes, read_index
from .steps_files import StepsFile, too_many_open
from .validation import (
    METADATA_FILE,
    STEPS_FILE,
    count_problems,
    is_labelled,
    metadata_problems,
    read_metadata,
    read_prompt_episodes,
    scan_episodes,
)

__all__ = ["PackedTask", "StepsFile", "pack_dataset"]

log = logging.getLogger(__name__)

_FORMAT, _LABELLED_FORMAT = 2, 3
_STEPS, _EPISODES, _PACK = "steps.f32", "episodes.safetensors", "pack.json"
_SHOWN_PROBLEMS = 10
_CLOCK_SLACK_NS = 3_000_000_000  # a file modified so shortly before it was hashed is hashed again
_HASH = re.compile(r"[0-9a-f]{64}")
_told: set[Path] = set()
"""The roots of which a message has said that they cannot be written."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedTask:
    """The packed data of one task: N steps of M episodes. Episode m is steps offsets[m] … offsets[m+1] - 1."""

    task: TaskSpec
    stored: StepsFile | NDArray[np.float32]  # in a file or in memory: (N, obs_dim + act_dim + 1), or + act_dim (labelled)
    offsets: NDArray[np.int64]  # (M+1,)
    returns: NDArray[np.float64]  # (M,) undiscounted
    success: NDArray[np.bool_] | None  # (M,) whether an episode succeeded; None where the task has no success
    stop_after_success: int  # episodes ended on this many-th successful step; 0: they have full length
    obs_mean: NDArray[np.float64]  # (obs_dim,) over all steps
    obs_std: NDArray[np.float64]  # (obs_dim,) over all steps, population standard deviation
    prompt_episodes: tuple[int, ...] | None = None  # those that the dataset names; None: it names none
    labelled: bool = False  # whether the steps have the demonstrator's own actions, before the return-to-go

    @property
    def steps(self) -> NDArray[np.float32]:
        """All steps, as wide as `stored`; the last column is the return-to-go. A file is mapped anew, read-only."""
        return self.stored.map() if isinstance(self.stored, StepsFile) else self.stored

    def read(self, first: int, count: int, length: int) -> bytes:
        """The bytes of steps first … first + count - 1, left-padded with zeros to `length` steps.

        Raises:
            DatasetError: the file was cut or replaced since it was opened.
        """
        stored = self.stored
        content = stored.read(first, count) if isinstance(stored, StepsFile) else stored[first : first + count].tobytes()
        return content if count == length else content.rjust(len(content) // count * length, b"\0")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps per episode, (M,)."""
        return np.diff(self.offsets)


def pack_dataset(path: Path | str, task: TaskSpec, cache: Path | str | None = None) -> PackedTask:
    """Opens the packed copy of the dataset at `path`; packs the dataset first unless there is a pack of its present content.

    cache: where packs are stored; None: `.packed` in the Minari root of the dataset, or a folder of the user's cache
        (XDG_CACHE_HOME, else ~/.cache) if that cannot be written or is a link. A pack that is in the root is used all the same.

    Raises:
        DatasetError: the dataset is missing or does not validate; the message lists its problems.
        PathError: the folder of the packs cannot be written.
        DiskSpaceError: the disk is full.
    """
    path = user_path(path).absolute()
    labelled = is_labelled(read_metadata(path))
    folders = _folders(path, task, cache)
    folder = folders[0] / task.name
    with path_errors(folder / path.name), file_lock(folder / f"{path.name}.lock"):
        source = _source_key(path, folder)
        name = f"{path.name}-{source[:16]}"
        for one in folders:
            if (packed := _open(one / task.name / name, source, task, labelled=labelled)) is not None:
                return packed
        _build(path, task, source, folder / name)
        _remove_older(folder / name, path.name)
        if (packed := _open(folder / name, source, task, labelled=labelled)) is None:
            raise DatasetError(f"{folder / name} was damaged while it was written; pack {path} again")
        return packed


def _folders(path: Path, task: TaskSpec, cache: Path | str | None) -> list[Path]:
    """Where packs of the dataset at `path` may lie; new ones go to the first."""
    if cache is not None:
        return [user_path(cache).absolute()]
    root = path.parents[2] if len(path.parents) > 2 else path.parent
    in_root = root / ".packed"
    nearest = next(folder for folder in (in_root, *in_root.parents) if folder.exists())
    link = next(
        (folder for folder in (in_root, in_root / task.name) if folder.is_symlink()), None
    )  # a stranger's may lead anywhere
    if link is None and os.access(nearest, os.W_OK | os.X_OK):
        return [in_root]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or user_path("~/.cache"))
    elsewhere = caches / "m3dt-agent" / "packed" / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    if root not in _told:
        _told.add(root)
        reason = f"{root} cannot be written" if link is None else f"{link} is a link, and nothing is written through one"
        log.warning("%s: packed copies are in %s (cache=, --cache: another folder)", reason, elsewhere)
    return [elsewhere, in_root]


def _stamp(path: Path) -> list[list[int]]:
    """Values that change whenever one of the source's files does; unlike mtime, ctime cannot be set back."""
    stats = [(path / file).stat() for file in (METADATA_FILE, STEPS_FILE)]
    return [[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]


def _source_key(path: Path, folder: Path) -> str:
    """SHA-256 of the source's files: the stored one if they cannot have changed since, else computed and stored."""
    memory = folder / f"{path.name}.source.json"
    stamp = _stamp(path)
    with contextlib.suppress(DatasetError, KeyError, TypeError):
        known = read_document(memory, dict[str, Any], DatasetError)
        is_young = max(s[4] for s in stamp) + _CLOCK_SLACK_NS >= known["hashed_at"]
        if known["stamp"] == stamp and not is_young and _HASH.fullmatch(known["sha256"]):
            return str(known["sha256"])
    hashed_at = time.time_ns()
    digest = hashlib.sha256()
    for file in (METADATA_FILE, STEPS_FILE):
        with (path / file).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    write_file(memory, json.dumps({"stamp": stamp, "hashed_at": hashed_at, "sha256": digest.hexdigest()}).encode())
    return digest.hexdigest()


def _open(target: Path, source: str, task: TaskSpec, *, labelled: bool) -> PackedTask | None:
    """The pack in the folder `target`; None if there is none, or a damaged one, or one of another source or format."""
    try:
        content = index_bytes(target / _EPISODES)
        description = _description(target, source, task, content, labelled=labelled)
        if read_document(target / _PACK, dict[str, Any], DatasetError) != description:
            return None
        width = sum(description["columns"])
        index = read_index(content, task, description["steps_bytes"] // (4 * width))
    except DatasetError:
        return None
    except OSError as error:
        if too_many_open(error):
            raise
        return None
    return PackedTask(
        task=task,
        stored=StepsFile(target / _STEPS, width),
        labelled=labelled,
        **{one.name: getattr(index, one.name) for one in dataclasses.fields(index)},
    )


def _description(folder: Path, source: str, task: TaskSpec, index: bytes, *, labelled: bool) -> dict[str, Any]:
    """What `pack.json` must hold if the pack in `folder` is whole and was made from this source."""
    return {
        "format": _LABELLED_FORMAT if labelled else _FORMAT,
        "task": task.name,
        "columns": [task.obs_dim, *[task.act_dim] * (2 if labelled else 1), 1],
        "source_sha256": source,
        "steps_bytes": (folder / _STEPS).stat().st_size,
        "episodes_sha256": hashlib.sha256(index).hexdigest(),
    }


def _build(path: Path, task: TaskSpec, source: str, target: Path) -> None:
    metadata, stamp = read_metadata(path), _stamp(path)
    with scratch_folder(target.parent) as scratch:
        require_space(scratch, (path / STEPS_FILE).stat().st_size)  # a pack is smaller than its HDF5 file
        index, labelled = IndexBuilder(task.obs_dim), is_labelled(metadata)
        with (scratch / _STEPS).open("wb") as steps:
            for episode in _valid_episodes(path, task, metadata):
                steps.write(packed_steps(episode, labelled=labelled).tobytes())
                index.add(episode)
        index.save(scratch / _EPISODES, metadata.get("stop_after_success", 0), read_prompt_episodes(metadata))
        described = _description(scratch, source, task, index_bytes(scratch / _EPISODES), labelled=labelled)
        (scratch / _PACK).write_text(json.dumps(described))
        if _stamp(path) != stamp:
            raise DatasetError(f"{path} changed while it was being packed; pack it again")
        shutil.rmtree(target, ignore_errors=True)  # a damaged pack, or it would have been opened
        publish(scratch, target)


def _valid_episodes(path: Path, task: TaskSpec, metadata: dict[str, Any]) -> Iterator[Episode]:
    """Reads the episodes and yields them until one has a problem; raises all problems together at the end."""
    problems = metadata_problems(metadata, task)
    episodes = steps = 0
    for scanned in scan_episodes(path, task, labelled=is_labelled(metadata)):
        problems += scanned.problems
        episodes, steps = episodes + 1, steps + scanned.steps
        if not problems:
            yield to_episode(scanned)
    problems += count_problems(metadata, episodes, steps)
    if problems:
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DatasetError(
            f"{path} cannot be packed for task {task.name!r}:\n  " + "\n  ".join(problems[:_SHOWN_PROBLEMS]) + more
        )


def packed_steps(episode: Episode, *, labelled: bool = False) -> NDArray[np.float32]:
    """The steps of an episode as they are stored, (L, obs_dim + act_dim + 1); labelled: with its labels, act_dim wider."""
    to_go = np.cumsum(episode.rewards[::-1], dtype=np.float64)[::-1]
    labels = [] if not labelled or episode.demonstrator_actions is None else [episode.demonstrator_actions]
    return np.concatenate([episode.observations[:-1], episode.actions, *labels, to_go[:, None].astype(np.float32)], axis=1)


def _remove_older(target: Path, name: str) -> None:
    """Removes packs of earlier contents of the dataset. A process that has one open can go on reading it."""
    for older in target.parent.glob(f"{name}-{'?' * 16}"):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)
