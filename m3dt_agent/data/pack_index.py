"""The index of a pack, `episodes.safetensors`: where its episodes lie, their returns, and the statistics of the observations.

    offsets (M+1,) int64       steps offsets[m] … offsets[m+1] - 1 are episode m
    returns (M,) float64, success (M,) bool or absent, prompt_episodes (K,) int64 or absent, stop_after_success (1,) int64
    obs_mean, obs_std (obs_dim,) float64

A pack lies in a folder that may have come with a stranger's dataset, so what is read is checked: types, shapes and ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import DatasetError
from ..system.disk import open_regular
from ..tasks import TaskSpec
from .episodes import Episode
from .limits import LARGEST_RETURN, LARGEST_VALUE, MOST_EPISODES

_LARGEST_FILE = 100_000 + 32 * MOST_EPISODES  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class PackIndex:
    """What `episodes.safetensors` holds; the module's docstring gives the shapes."""

    offsets: NDArray[np.int64]
    returns: NDArray[np.float64]
    success: NDArray[np.bool_] | None
    stop_after_success: int
    obs_mean: NDArray[np.float64]
    obs_std: NDArray[np.float64]
    prompt_episodes: tuple[int, ...] | None


class IndexBuilder:
    """Collects what the index holds, episode by episode.

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
        """Adds the next episode."""
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
        """Writes the index of all episodes that were added."""
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
        path.write_bytes(save(arrays))  # not save_file, whose errors do not tell a full disk from others


def index_bytes(path: Path) -> bytes:
    """The content of an index.

    Raises:
        DatasetError: it is larger than that of any dataset.
        PathError: it cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        content: bytes = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise DatasetError(f"{path} has more than {_LARGEST_FILE:,} bytes")
    return content


def read_index(content: bytes, task: TaskSpec, n_steps: int) -> PackIndex:
    """The index in `content`, of a pack of `n_steps` steps of `task`.

    Raises:
        DatasetError: it is damaged, or does not fit the task and the number of steps.
    """
    try:
        arrays = {name: array.copy() for name, array in load(content).items()}
        problem = _problem(arrays, task, n_steps)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    if problem is not None:
        raise DatasetError(f"the index of a pack of task {task.name!r} is damaged: {problem}")
    return PackIndex(
        offsets=arrays["offsets"],
        returns=arrays["returns"],
        success=arrays.get("success"),
        stop_after_success=int(arrays["stop_after_success"][0]),
        obs_mean=arrays["obs_mean"],
        obs_std=arrays["obs_std"],
        prompt_episodes=tuple(arrays["prompt_episodes"].tolist()) if "prompt_episodes" in arrays else None,
    )


def _problem(arrays: dict[str, NDArray[Any]], task: TaskSpec, n_steps: int) -> str | None:
    episodes = len(arrays["returns"])
    prompts = arrays.get("prompt_episodes", np.zeros(1, np.int64))
    wanted = {
        "offsets": ("int64", (episodes + 1,)),
        "returns": ("float64", (episodes,)),
        "success": ("bool", (episodes,)),
        "stop_after_success": ("int64", (1,)),
        "obs_mean": ("float64", (task.obs_dim,)),
        "obs_std": ("float64", (task.obs_dim,)),
        "prompt_episodes": ("int64", (len(prompts),)),
    }
    for name in arrays.keys() | (wanted.keys() - {"success", "prompt_episodes"}):
        if (str(arrays[name].dtype), arrays[name].shape) != wanted[name]:
            return f"{name} is {arrays[name].dtype} {arrays[name].shape}; it must be {wanted[name]}"
    lengths = np.diff(arrays["offsets"])
    ranges = {
        "episodes": (np.array([episodes]), 1, MOST_EPISODES),
        "offsets": (arrays["offsets"][[0, -1]] - [0, n_steps], 0, 0),
        "lengths": (lengths, 1, task.max_episode_steps),
        "returns": (arrays["returns"], -LARGEST_RETURN, LARGEST_RETURN),
        "obs_mean": (arrays["obs_mean"], -LARGEST_VALUE, LARGEST_VALUE),
        "obs_std": (arrays["obs_std"], 0, 2 * LARGEST_VALUE),
        "stop_after_success": (arrays["stop_after_success"], 0, task.max_episode_steps),
        "prompt_episodes": (prompts, 0, episodes - 1),
    }
    for name, (values, low, high) in ranges.items():
        if not ((values >= low) & (values <= high)).all():
            return f"{name} leaves its range"
    return "prompt_episodes names one twice" if len(set(prompts.tolist())) < len(prompts) else None
