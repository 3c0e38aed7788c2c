"""Where published data lies, and how its episodes are read: the four formats that `import_datasets` knows.

    mt160      <published name>/<i>.npz             one episode each, zero-padded to 39 and 8; the last two are the prompts
    tdmpc2     *.pt                                 TensorDicts (episodes, 501) of 30 tasks, row 0 without action and reward
    prompt-dt  ant_dir/ant_dir-<i>-<level>.pkl      lists of trajectories; ….-prompt-<level>.pkl hold the prompts
    minari     data/{metadata.json, main_data.hdf5} one Minari dataset

TD-MPC2's files are read in `tdmpc2_files.py`, pickles in `safe_pickles.py`.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m3dt_agent.data.episodes import to_episode
from m3dt_agent.data.validation import (
    METADATA_FILE,
    STEPS_FILE,
    ScannedEpisode,
    count_problems,
    read_metadata,
    read_prompt_episodes,
    scan_episodes,
)
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.hub.published.episodes import MAX_EPISODES, Listing, Numbers, PublishedEpisode, PublishedTask, Wanted, endings, flat, make_episode, natural_order, require_keys, unpadded
from m3dt_agent.hub.published.safe_pickles import load_arrays
from m3dt_agent.hub.published.tdmpc2 import find_tdmpc2
from m3dt_agent.tasks import MAX_ACT_DIM, MAX_OBS_DIM, TASKS, TaskSpec

N_PROMPT_FILES = 2
"""The last files of an MT160 folder are its prompts (the authors' code); the other 1,998 are for training."""

_NPZ_LIMIT = 64_000_000  # bytes; an episode of 500 steps takes 0.2 MB, so this is no episode
_PROMPT_DT_FILE = re.compile(r"(ant_dir|cheetah_vel)-([0-9]+)-(prompt-)?\w+\.pkl")


# -- MT160 ---------------------------------------------------------------------------------------------------------------------


def find_mt160(path: Path, _: Wanted) -> Listing:
    """The authors' folder of folders of `.npz` files. Folders of other names, hidden ones apart, are unknown."""
    by_name = {task.published_name: task for task in TASKS}
    folders = sorted(folder for folder in path.glob("[!.]*") if folder.is_dir())
    return Listing(
        {by_name[f.name].name: functools.partial(_open_mt160, by_name[f.name], f) for f in folders if f.name in by_name},
        tuple(folder.name for folder in folders if folder.name not in by_name),
    )


def _open_mt160(task: TaskSpec, folder: Path) -> PublishedTask:
    names = {file.name for file in folder.glob("*.npz")}
    if odd := sorted(names ^ {f"{i}.npz" for i in range(len(names))}):
        raise DatasetError(f"{folder}: episodes must be 0.npz … {len(names) - 1}.npz; missing or unknown: {', '.join(odd[:6])}")
    if len(names) <= N_PROMPT_FILES:
        raise DatasetError(f"{folder} holds {len(names)} episode(s); the last {N_PROMPT_FILES} are prompts, so it needs more")
    files = tuple(folder / f"{i}.npz" for i in range(min(len(names), MAX_EPISODES)))
    read = functools.partial(_read_mt160, task, files)
    return PublishedTask(task, folder.name, files, read, len(files), {"m3dt_final_observation": "repeated"})


def _read_mt160(task: TaskSpec, files: Sequence[Path]) -> Iterator[PublishedEpisode]:
    for i, file in enumerate(files):
        yield _mt160_episode(task, file, is_prompt=i >= len(files) - N_PROMPT_FILES)


def _mt160_episode(task: TaskSpec, file: Path, *, is_prompt: bool) -> PublishedEpisode:
    arrays = _load_npz(file)
    dones = "dones" if "dones" in arrays else "terminals"
    require_keys(str(file), arrays, ("observations", "actions", "rewards", dones))
    observations, actions = arrays["observations"], arrays["actions"]
    length = len(actions) if actions.ndim else 0
    for name, wanted in (("observations", (length, MAX_OBS_DIM)), ("actions", (length, MAX_ACT_DIM))):
        if arrays[name].shape != wanted:
            raise DatasetError(f"{file}: {name} is {arrays[name].shape}; it must be {wanted}, padded with zeros")
    observations = unpadded(str(file), "observations", observations, task.obs_dim)
    return make_episode(
        str(file),
        task,
        {
            "observations": np.concatenate([observations, observations[-1:]]),  # the final one was not published
            "actions": unpadded(str(file), "actions", actions, task.act_dim),
            "rewards": flat(arrays["rewards"]),
            **endings(str(file), task, flat(arrays[dones]), length),
        },
        is_prompt=is_prompt,
    )


def _load_npz(file: Path) -> dict[str, Numbers]:
    try:
        return _unpack(file)
    except Exception as error:  # a damaged archive raises almost anything
        raise DatasetError(f"{file} cannot be read: {error}") from error


def _unpacked_bytes(file: Path) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(info.file_size for info in archive.infolist())


def _unpack(file: Path) -> dict[str, Numbers]:
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, not an archive of named ones")
    with loaded as archive:
        if (n_bytes := _unpacked_bytes(file)) > _NPZ_LIMIT:
            raise ValueError(f"it unpacks to {n_bytes / 1e6:,.0f} MB, too much for an episode")
        arrays: dict[str, Numbers] = {name: archive[name] for name in archive.files}
    if odd := [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]:
        raise ValueError(f"{odd[0]} is {arrays[odd[0]].dtype}, not an array of numbers")
    return arrays


# -- Prompt-DT -----------------------------------------------------------------------------------------------------------------


def find_prompt_dt(path: Path, _: Wanted) -> Listing:
    """Prompt-DT's pickles in `path` and its folders; others are unknown. All levels of a task are read, in name order."""
    files = sorted([*path.glob("*.pkl"), *path.glob("[!.]*/*.pkl")], key=natural_order)
    names = {task.name for task in TASKS}
    by_task: dict[str, list[tuple[Path, bool]]] = {}
    unknown = []
    for file in files:
        match = _PROMPT_DT_FILE.fullmatch(file.name)
        name = f"{match[1].replace('_', '-')}-{int(match[2])}" if match else ""
        if match and name in names:
            by_task.setdefault(name, []).append((file, match[3] is not None))
        else:
            unknown.append(file.name)
    return Listing(
        {task.name: functools.partial(_open_prompt_dt, task, by_task[task.name]) for task in TASKS if task.name in by_task},
        tuple(unknown),
    )


def _open_prompt_dt(task: TaskSpec, found: Sequence[tuple[Path, bool]]) -> PublishedTask:
    ordered = sorted(found, key=lambda one: one[1])  # stable: prompts come last
    files = tuple(file for file, _ in ordered)
    if all(is_prompt for _, is_prompt in ordered):
        raise DatasetError(f"{files[0]}: task {task.name!r} has prompts but no trajectories to train on")
    return PublishedTask(task, ", ".join(file.name for file in files), files, functools.partial(_read_prompt_dt, task, ordered))


def _read_prompt_dt(task: TaskSpec, files: Sequence[tuple[Path, bool]]) -> Iterator[PublishedEpisode]:
    for file, is_prompt in files:
        for i, arrays in enumerate(load_arrays(file)):
            yield _prompt_dt_episode(f"{file}, trajectory {i}", task, arrays, is_prompt=is_prompt)


def _prompt_dt_episode(where: str, task: TaskSpec, arrays: Mapping[str, Numbers], *, is_prompt: bool) -> PublishedEpisode:
    require_keys(where, arrays, ("observations", "next_observations", "actions", "rewards", "terminals"))
    observations, following = arrays["observations"], arrays["next_observations"]
    if observations.ndim != 2 or observations.shape != following.shape:
        found = f"observations is {observations.shape}, next_observations {following.shape}"
        raise DatasetError(f"{where}: {found}; they must be of one shape, (steps, {task.obs_dim})")
    return make_episode(
        where,
        task,
        {
            "observations": np.concatenate([observations, following[-1:]]),
            "actions": arrays["actions"],
            "rewards": flat(arrays["rewards"]),
            **endings(where, task, flat(arrays["terminals"]), len(observations)),
        },
        is_prompt=is_prompt,
    )


# -- Minari --------------------------------------------------------------------------------------------------------------------


def find_minari(path: Path, wanted: Wanted) -> Listing:
    """The Minari dataset in the folder `path`, as data of the one task wanted; read with h5py, never by Minari.

    Raises:
        ConfigError: not exactly one task is wanted; only its widths could tell which one it is.
    """
    if wanted is None or len(wanted) != 1:
        raise ConfigError(f"a Minari dataset is imported as data of exactly one task; got {len(wanted or ())}")
    return Listing({wanted[0].name: functools.partial(_open_minari, wanted[0], path)})


def _open_minari(task: TaskSpec, path: Path) -> PublishedTask:
    metadata = read_metadata(path)
    if metadata.get("m3dt_task", task.name) != task.name:
        raise DatasetError(f"{path} holds data of task {metadata['m3dt_task']!r}, not {task.name!r}")
    stop = metadata.get("stop_after_success", 0)
    if type(stop) is not int or stop < 0:
        raise DatasetError(f"{path}: stop_after_success is {stop!r}; it must be an integer >= 0")
    original = str(metadata.get("dataset_id", path.name))
    files = (path / METADATA_FILE, path / STEPS_FILE)
    read = functools.partial(_read_minari, task, path)
    return PublishedTask(task, original, files, read, None, {"stop_after_success": stop})


def _read_minari(task: TaskSpec, path: Path) -> Iterator[PublishedEpisode]:
    metadata = read_metadata(path)
    prompts = read_prompt_episodes(metadata) or ()
    episodes = steps = 0
    for scanned in scan_episodes(path, task):
        where = f"{path}, episode {scanned.index}"
        if not scanned.arrays:  # other problems, such as float64, may be gone once converted
            raise DatasetError(f"{path}: {scanned.problems[0]}")
        made = make_episode(where, task, _minari_arrays(scanned), seed=scanned.seed, is_prompt=scanned.index in prompts)
        episodes, steps = episodes + 1, steps + made.episode.length
        yield made
    if problems := count_problems(metadata, episodes, steps):
        raise DatasetError(f"{path}: {problems[0]}")


def _minari_arrays(scanned: ScannedEpisode) -> dict[str, Numbers]:
    episode = to_episode(scanned)
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    arrays: dict[str, Numbers] = {name: getattr(episode, name) for name in names}
    if episode.success is not None:  # ours is latched; not everybody's is
        arrays["success"] = np.logical_or.accumulate(episode.success)
    return arrays


FORMATS: Mapping[str, Callable[[Path, Wanted], Listing]] = {
    "mt160": find_mt160,
    "tdmpc2": find_tdmpc2,
    "prompt-dt": find_prompt_dt,
    "minari": find_minari,
}
"""By the names that `import_datasets` takes."""
