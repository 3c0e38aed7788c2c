"""Reads what a page shows of a dataset, in one pass over its file with one episode in memory at a time.

A stranger's file is read as everywhere in `data`: nothing in it is executed, followed or believed. Episodes with problems are
left out and counted. A dataset of a task that is not known here is read too, with the widths of its first episode.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.hdf5_files import EpisodeArrays, RefusedError, open_steps
from ..data.metadata import STEPS_FILE
from ..data.validation import ScannedEpisode, episode_problems, metadata_problems, read_metadata, scan_episodes
from ..errors import ConfigError, DatasetError
from ..system.disk import path_errors
from ..tasks import TaskSpec, known, registered

Floats = NDArray[np.float64]
AT_BOUND = 1.0 - 1e-6
"""An entry of an action that is at least so large was clipped to [-1, 1], or is at the bound of itself."""
_VERSION = "-v0"
_PROBLEMS = 5
"""Problems that are shown of a dataset; the others are counted."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Of each of d dimensions over all steps: lowest, highest, mean and standard deviation, (d,) each."""

    low: Floats
    high: Floats
    mean: Floats
    deviation: Floats


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """One dataset.

    spec: None if the task is not known here. demonstrator: who acted. indices: places in the file of the E episodes without a
    problem. returns, lengths: theirs, (E,). success: (E,) bool; None if it is not recorded. clipped: share of the entries of
    actions at a bound. actions, observations: None without episodes. problems: some of them, in words. bytes: of the steps.
    """

    task: str
    source: str
    path: Path
    spec: TaskSpec | None
    demonstrator: str
    indices: NDArray[np.int64]
    returns: Floats
    lengths: NDArray[np.int64]
    success: NDArray[np.bool_] | None
    clipped: float | None
    actions: Ranges | None
    observations: Ranges | None
    problems: tuple[str, ...]
    bytes: int

    @property
    def scores(self) -> Floats | None:
        """(E,) the episodes' normalized scores; None where the task is not known, or is scored by a success without record."""
        if self.spec is None or (self.spec.score == "success" and self.success is None):
            return None
        success = [None] * len(self.returns) if self.success is None else self.success.tolist()
        pairs = zip(self.returns.tolist(), success, strict=True)
        return np.array([self.spec.normalized_score(value, solved) for value, solved in pairs])


def find_datasets(root: Path) -> list[tuple[str, str, Path]]:
    """(task, source, folder) of every dataset under a Minari root: known tasks first, in the order of `tasks.known`.

    Raises:
        PathError: a folder cannot be read.
    """
    order = {task.name: i for i, task in enumerate(known())}
    with path_errors(root):
        folders = [
            (task.name, folder.name.removesuffix(_VERSION), folder)
            for task in (root / "m3dt").iterdir()
            if task.is_dir()
            for folder in task.glob(f"*{_VERSION}")
            if folder.is_dir() and not folder.name.startswith(".")
        ]
    return sorted(folders, key=lambda found: (order.get(found[0], len(order)), found[:2]))


def read_stats(task: str, source: str, path: Path) -> DatasetStats:
    """What is in the dataset at `path`. A damaged one has no episodes, and its problem says why."""
    spec, totals, problems, size = registered(task), _Totals(), [], 0
    metadata: dict[str, Any] = {}
    try:
        metadata = read_metadata(path)
        size = (path / STEPS_FILE).stat().st_size
        problems += [] if spec is None else metadata_problems(metadata, spec)
        for episode in scan_episodes(path, spec):
            problems += totals.add(episode, checked=spec is not None)
    except DatasetError as error:
        problems.append(str(error))
    if spec is None:
        problems.append("the task is not known here: m3dt --tasks FILE view … registers it")
    more = [f"and {len(problems) - _PROBLEMS} more problems"] if len(problems) > _PROBLEMS else []
    return DatasetStats(
        task=task,
        source=source,
        path=path,
        spec=spec,
        demonstrator=demonstrator(metadata) or source,
        indices=np.array(totals.indices, np.int64),
        returns=np.array(totals.returns, np.float64),
        lengths=np.array(totals.lengths, np.int64),
        success=None if None in totals.success or not totals.success else np.array(totals.success, bool),
        clipped=totals.at_bound / totals.entries if totals.entries else None,
        actions=totals.actions.ranges(),
        observations=totals.observations.ranges(),
        problems=(*problems[:_PROBLEMS], *more),
        bytes=size,
    )


def demonstrator(metadata: Mapping[str, Any]) -> str | None:
    """Who acted in a dataset, as its metadata says: levels with their shares, or what was imported; None if it does not say."""
    levels, imported = _table(metadata.get("m3dt_policy")), _table(metadata.get("m3dt_import"))
    shares = {level: share for level, share in levels.items() if isinstance(share, int | float)}
    if shares:
        return ", ".join(f"{level} {100 * shares[level]:.0f}%" for level in sorted(shares, key=lambda level: -shares[level]))
    return f"imported: {imported.get('format')}, {imported.get('original')}" if imported else None


def _table(text: object) -> dict[str, Any]:
    """The JSON object in a text of the metadata; {} if there is none."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        found = json.loads(text) if isinstance(text, str) else None
        return found if isinstance(found, dict) else {}
    return {}


class _Totals:
    """What is counted while the episodes go by."""

    def __init__(self) -> None:
        self.indices, self.returns, self.lengths = list[int](), list[float](), list[int]()
        self.success = list[bool | None]()
        self.at_bound = self.entries = 0
        self.actions, self.observations = _Moments(), _Moments()

    def add(self, episode: ScannedEpisode, *, checked: bool) -> list[str]:
        """Counts an episode, or returns its problems. checked: whether it was compared with its task."""
        if problems := list(episode.problems) or ([] if checked else self._misfits(episode)):
            return problems
        actions, success = episode.arrays["actions"], episode.arrays.get("success")
        self.indices.append(episode.index)
        self.returns.append(float(episode.arrays["rewards"].sum(dtype=np.float64)))
        self.lengths.append(len(actions))
        self.success.append(None if success is None else bool(success.any()))
        self.at_bound += int((np.abs(actions) >= AT_BOUND).sum())
        self.entries += actions.size
        self.actions.add(actions)
        self.observations.add(episode.arrays["observations"])
        return []

    def _misfits(self, episode: ScannedEpisode) -> list[str]:
        """What is wrong with an episode of a task that is not known: it must be like any task's, and as wide as the first."""
        arrays = episode.arrays
        widths = [arrays[name].shape[1:] for name in ("observations", "actions")]
        before = [moments.width for moments in (self.observations, self.actions)]
        if any(len(width) != 1 for width in widths) or (self.indices and widths != before):
            return [f"episode {episode.index}: observations and actions are {widths} wide; those before are {before}"]
        try:
            like = TaskSpec("unknown", "unknown", widths[0][0], widths[1][0], max(len(arrays["actions"]), 1), 1.0, "return")
        except ConfigError as error:
            return [f"episode {episode.index}: {error}"]
        return [f"episode {episode.index}{where}" for where in episode_problems(arrays, like)]


class _Moments:
    """Running lowest, highest, sum and sum of squares of rows (n, d)."""

    def __init__(self) -> None:
        self.count = 0
        self.width: tuple[int, ...] = ()
        self.low = self.high = self.sum = self.squares = np.zeros(0)

    def add(self, rows: NDArray[Any]) -> None:
        rows = rows.astype(np.float64)
        first = self.count == 0
        self.count, self.width = self.count + len(rows), rows.shape[1:]
        low, high, total, squares = rows.min(0), rows.max(0), rows.sum(0), np.square(rows).sum(0)
        self.low = low if first else np.minimum(self.low, low)
        self.high = high if first else np.maximum(self.high, high)
        self.sum = total if first else self.sum + total
        self.squares = squares if first else self.squares + squares

    def ranges(self) -> Ranges | None:
        if self.count == 0:
            return None
        mean = self.sum / self.count
        return Ranges(self.low, self.high, mean, np.sqrt(np.maximum(self.squares / self.count - np.square(mean), 0.0)))


def stored_episode(path: Path, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int | None]:
    """Actions (L, act_dim), rewards (L,) and seed of one episode that `read_stats` found without a problem.

    Raises:
        DatasetError: it cannot be read any more.
    """
    file_path = path / STEPS_FILE
    try:
        with open_steps(file_path) as file:
            found, seed = EpisodeArrays(file, file_path.stat().st_size).of(index, ("actions", "rewards"), ())
            return found["actions"][()], found["rewards"][()], seed
    except RefusedError as error:
        raise DatasetError(f"{path}, episode {index}: {error}") from error
