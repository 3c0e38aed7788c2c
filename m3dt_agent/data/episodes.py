"""Writes episodes to Minari (HDF5) datasets and reads them back, one dataset per task.

    <root>/m3dt/namespace_metadata.json
    <root>/m3dt/<task>/namespace_metadata.json
    <root>/m3dt/<task>/<source>-v0/data/{metadata.json, main_data.hdf5}      Minari id m3dt/<task>/<source>-v0

Minari itself writes a dataset, under a temporary root; the finished folder is then renamed into place. Reading uses h5py alone,
so nothing in a dataset is ever executed. The `env_spec` in the metadata is for other programs: this package finds the
environment by the task's name (docs/architecture.md#data).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..system.disk import path_errors, replace_folder, require_space, restore_replaced, scratch_folder, user_path, write_file
from ..system.text import visible
from ..tasks import TaskSpec, is_builtin, known
from .metadata import LABELLED
from .validation import ScannedEpisode, episode_problems, is_labelled, read_metadata, scan_episodes, validate_dataset

__all__ = [
    "Episode",
    "dataset_id",
    "dataset_path",
    "find_sources",
    "read_episodes",
    "read_metadata",
    "validate_dataset",
    "write_dataset",
]

_ROOT_VARIABLE = "MINARI_DATASETS_PATH"
_ROOT_LOCK = threading.Lock()  # the variable belongs to the whole process
_SOURCE = re.compile(r"\w[-\w]*")  # what Minari accepts in an id, without "/"
_VERSION = "-v0"
_ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations")
_INFOS = {"success": "success", "demonstrator_actions": "demonstrator_action"}
"""Fields that an episode may lack → their names in Minari's infos."""
# If the disk fills up while HDF5 writes, the process crashes (measured with HDF5 2.0 and h5py 3.16). So we stop while there is
# still room to close the file.
_HDF5_MARGIN = 32_000_000
_HDF5_OVERHEAD = 4  # bytes of file per byte of array; measured: 2.5, from partly filled chunks and an index per array


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One episode of L steps. Arrays are converted to the types below; everything else is checked when the episode is written.

    actions[t] was taken after observations[t]; observations[L] is the final one. rewards[t], terminations[t], truncations[t]
    and success[t] belong to the transition from observations[t] to observations[t + 1]. success: None where a task has none.
    demonstrator_actions[t] is what the demonstrator itself would have done after observations[t], where noise or another policy
    decided actions[t]; None: what was done. In Minari's layout it is `infos/demonstrator_action`.
    """

    observations: NDArray[np.float32]  # (L+1, obs_dim)
    actions: NDArray[np.float32]  # (L, act_dim)
    rewards: NDArray[np.float32]  # (L,)
    terminations: NDArray[np.bool_]  # (L,)
    truncations: NDArray[np.bool_]  # (L,)
    success: NDArray[np.bool_] | None = None  # (L,), latched
    seed: int | None = None
    demonstrator_actions: NDArray[np.float32] | None = None  # (L, act_dim)

    def __post_init__(self) -> None:
        floats = dict.fromkeys(("observations", "actions", "rewards", "demonstrator_actions"), np.float32)
        flags = dict.fromkeys(("terminations", "truncations", "success"), np.bool_)
        for name, kind in (floats | flags).items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), kind))

    @property
    def length(self) -> int:
        """The number of steps, L."""
        return len(self.actions)

    @property
    def episode_return(self) -> float:
        """Undiscounted return, summed in float64."""
        return float(self.rewards.sum(dtype=np.float64))


def dataset_id(task: TaskSpec, source: str) -> str:
    """The Minari id `m3dt/<task>/<source>-v0`.

    Raises:
        DatasetError: Minari's ids cannot hold the source name.
    """
    if not _SOURCE.fullmatch(source):
        raise DatasetError(f"a source name takes letters, digits, '_' and '-'; got {source!r}")
    return f"m3dt/{task.name}/{source}{_VERSION}"


def dataset_path(root: Path | str, id: str) -> Path:  # noqa: A002
    """The folder of the dataset with the Minari id `id` under the Minari root `root`; its file is `data/main_data.hdf5`."""
    return user_path(root) / id


def find_sources(root: Path | str, task: TaskSpec) -> dict[str, Path]:
    """Source name → folder of every dataset of `task` under `root`. Half-written ones are included: using one is an error.

    Raises:
        PathError: the folder of the task cannot be read.
    """
    folder = user_path(root) / "m3dt" / task.name
    restore_replaced(folder)
    with path_errors(folder):
        found = sorted(folder.glob(f"*{_VERSION}")) if folder.is_dir() else []
        return {path.name.removesuffix(_VERSION): path for path in found if path.is_dir() and not path.name.startswith(".")}


def unknown_tasks(root: Path | str) -> str:
    """What to say of tasks that have datasets under `root` and are not known here; empty if there are none.

    Raises:
        PathError: a folder cannot be read.
    """
    folder, here = user_path(root) / "m3dt", {task.name for task in known()}
    with path_errors(folder):
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        names = [one.name for one in there if one.name not in here and one.is_dir() and any(one.glob(f"*{_VERSION}"))]
    if not names:
        return ""
    shown = visible(", ".join(names), longest=300)
    return f"datasets of {shown} are left out: no such task is registered here (m3dt --tasks FILE names a file of tasks)"


def read_episodes(path: Path | str) -> Iterator[Episode]:
    """Reads the episodes of the dataset at `path` in order, with one in memory at a time. float64 is converted to float32.

    It never executes code. It checks only that the arrays are there; `validate_dataset` checks the rest.

    Raises:
        DatasetError: there is no whole dataset, its file is damaged, or an episode's arrays are missing or unreadable.
    """
    path = user_path(path)
    for scanned in scan_episodes(path, None, labelled=is_labelled(read_metadata(path))):
        if scanned.problems:
            raise DatasetError(f"{path}: {scanned.problems[0]}")
        yield to_episode(scanned)


def to_episode(scanned: ScannedEpisode) -> Episode:
    """Makes an episode of what was read. Minari stores the info of the reset first; it is dropped from what infos hold."""
    length = len(scanned.arrays["actions"])
    infos = {name: scanned.arrays[name][-length:] for name in _INFOS if name in scanned.arrays}
    return Episode(**{**scanned.arrays, **infos}, seed=scanned.seed)


def check_episode(episode: Episode, task: TaskSpec, where: str, advice: str = "") -> None:
    """Checks that an episode fits its task: shapes, finite numbers within bounds, and nothing after its end.

    Raises:
        DatasetError: it does not. The message begins with `where`, names the step, and ends with `advice`.
    """
    arrays = {name: getattr(episode, name) for name in (*_ARRAYS, *_INFOS) if getattr(episode, name) is not None}
    if problems := episode_problems(arrays, task):
        raise DatasetError(f"{where}{problems[0]}{advice}")


def write_dataset(
    root: Path | str,
    task: TaskSpec,
    source: str,
    episodes: Iterable[Episode],
    *,
    metadata: Mapping[str, str | int | float | bool],
    replace: bool = False,
) -> Path:
    """Writes `episodes` as the Minari dataset `m3dt/<task>/<source>-v0` under `root` and returns its folder.

    One episode is in memory at a time. The folder appears at the end, whole, or not at all. Only one process may write a
    dataset.

    Args:
        root: the Minari root folder; created if needed.
        task: the task of all episodes.
        source: last part of the dataset's name.
        episodes: at least one.
        metadata: entries to add to Minari's own (`stop_after_success`, `m3dt_policy`, …); `m3dt_task` and `m3dt_source` are
            always added. It is read after the last episode, so a generator of episodes may fill in what it counted.
        replace: replace an older dataset of that name; it stays in place until the new one is complete.

    Raises:
        DatasetError: the dataset exists and not `replace`; there are no episodes; or one does not fit the task (the message
            names episode and step).
        DiskSpaceError: the disk is full.
        PathError: the folder cannot be written.
    """
    name, root = dataset_id(task, source), user_path(root).absolute()  # Minari misreads relative roots
    target = dataset_path(root, name)
    restore_replaced(target.parent)
    if target.exists() and not replace:
        raise DatasetError(f"{target} exists already; delete it or choose another source name")
    with path_errors(target), scratch_folder(root) as scratch:
        marks: dict[str, bool] = {}
        buffers = _to_buffers(episodes, task, scratch, marks)
        _write_with_minari(scratch, name, task, source, buffers, metadata, marks)
        built = dataset_path(scratch, name)
        if problems := validate_dataset(built, task):  # h5py ignores errors while it closes a file
            raise DatasetError(f"{target} could not be written whole: {problems[0]}")
        make_namespaces(root, name)
        replace_folder(built, target)
    return target


def _to_buffers(episodes: Iterable[Episode], task: TaskSpec, scratch: Path, marks: dict[str, bool]) -> Iterator[Any]:
    """The episodes as Minari takes them. marks: gets what the metadata must say of them."""
    from minari.data_collector import EpisodeBuffer

    index = -1
    for index, episode in enumerate(episodes):
        check_episode(episode, task, f"task {task.name!r}, episode {index}")
        labelled = episode.demonstrator_actions is not None
        if marks.setdefault(LABELLED, labelled) != labelled:
            raise DatasetError(f"task {task.name!r}, episode {index}: all episodes have demonstrator_actions, or none has")
        arrays = {name: getattr(episode, name) for name in _ARRAYS}
        found = {stored: getattr(episode, name) for name, stored in _INFOS.items() if getattr(episode, name) is not None}
        n_bytes = sum(array.nbytes for array in (*arrays.values(), *found.values()))
        require_space(scratch, _HDF5_MARGIN + _HDF5_OVERHEAD * n_bytes)
        # Minari stores the info of the reset first
        infos = {stored: np.concatenate([np.zeros_like(array[:1]), array]) for stored, array in found.items()}
        yield EpisodeBuffer(seed=episode.seed, **arrays, infos=infos or None)
    if index < 0:
        raise DatasetError(f"task {task.name!r}: no episodes to write")


def _write_with_minari(
    scratch: Path,
    name: str,
    task: TaskSpec,
    source: str,
    buffers: Iterator[Any],
    metadata: Mapping[str, Any],
    marks: Mapping[str, bool],
) -> None:
    import minari

    with _minari_root(scratch), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author, a permalink and an env; see below
        dataset = minari.create_dataset_from_buffers(
            name,
            buffers,
            # Given the env, Minari would create it and so load its simulator. Its spec is added to the metadata below.
            observation_space=gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32),
            action_space=gym.spaces.Box(-1.0, 1.0, (task.act_dim,), np.float32),
            algorithm_name=str(metadata.get("m3dt_policy", source)),
            description=f"Episodes of {task.env_id} ({task.domain}), recorded by m3dt-agent.",
        )
    ours = {"m3dt_task": task.name, "m3dt_source": source, **{mark: True for mark, holds in marks.items() if holds}}
    if is_builtin(task):  # the environment of any other task takes other actions than the dataset holds
        ours["env_spec"] = gym.spec(task.env_id).to_json()
    dataset.storage.update_metadata({**metadata, **ours})


@contextlib.contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    with _ROOT_LOCK:
        before = os.environ.get(_ROOT_VARIABLE)
        os.environ[_ROOT_VARIABLE] = str(root)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_ROOT_VARIABLE]
            else:
                os.environ[_ROOT_VARIABLE] = before


def make_namespaces(root: Path, name: str) -> None:
    """Writes the files that make `m3dt` and `m3dt/<task>` namespaces for Minari, where they are missing. name: a dataset id."""
    for folder in list(Path(name).parents)[-2::-1]:  # without "."; outermost first
        file = root / folder / "namespace_metadata.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, json.dumps({}))
