"""Writers of published data formats, for the tests of their importers: random numbers, small or large."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3dt_agent.data.episodes import Episode, read_episodes
from m3dt_agent.tasks import TaskSpec

Arrays = dict[str, np.ndarray]


def trajectory(task: TaskSpec, length: int, seed: int, reach: float = 1.0) -> Arrays:
    """observations (L+1, obs_dim), actions (L, act_dim) in ± reach, rewards (L,); float64."""
    rng = np.random.default_rng([seed, length])
    return {
        "observations": rng.normal(3.0, 2.0, (length + 1, task.obs_dim)),
        "actions": rng.uniform(-reach, reach, (length, task.act_dim)),
        "rewards": rng.normal(0.0, 5.0, length),
    }


def padded(values: np.ndarray, width: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def write_mt160(path: Path, task: TaskSpec, lengths: Sequence[int], reach: float = 1.0) -> list[Arrays]:
    folder = path / task.published_name
    folder.mkdir(parents=True)
    written = [trajectory(task, length, i, reach) for i, length in enumerate(lengths)]
    for i, one in enumerate(written):
        done = np.arange(lengths[i]) == lengths[i] - 1
        np.savez(
            folder / f"{i}.npz",
            observations=padded(one["observations"][:-1], 39),
            actions=padded(one["actions"], 8),
            rewards=one["rewards"][:, None] if i % 2 else one["rewards"],
            **{"dones" if i % 2 else "terminals": done[:, None] if i == 1 else done.astype(float)},
            timesteps=np.arange(lengths[i]),
        )
        one["observations"][-1] = one["observations"][-2]
    return written


def change(name: str, edit: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Rewrites one array of an `.npz` file with what `edit` makes of it, in place or by returning another; None drops it."""

    def apply(file: Path) -> None:
        with np.load(file) as archive:
            arrays = dict(archive)
        edited = edit(arrays.pop(name))
        np.savez(file, **arrays, **({} if edited is None else {name: edited}))

    return apply


def tdmpc2_tensors(episodes: Sequence[tuple[int, Arrays]]) -> dict[str, torch.Tensor]:
    """The tensors of (task index, trajectory) pairs of one length, padded to 24 and 6; row 0 has no action and reward."""
    nan = [np.nan]
    rows = len(episodes[0][1]["observations"])
    return {
        "obs": torch.tensor(np.stack([padded(one["observations"], 24) for _, one in episodes])).float(),
        "action": torch.tensor(np.stack([np.r_[[nan * 6], padded(one["actions"], 6)] for _, one in episodes])).float(),
        "reward": torch.tensor(np.stack([np.r_[nan, one["rewards"]] for _, one in episodes])).float(),
        "task": torch.tensor([index for index, _ in episodes], dtype=torch.int32)[:, None].repeat(1, rows),
    }


def save_tensordict(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """torch.save of an object that pickles as TensorDicts of version 0.3 do; real ones are among the golden files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    module = types.ModuleType("tensordict._td")
    kind = type("TensorDict", (), {"__module__": module.__name__, "__qualname__": "TensorDict"})
    made = kind()
    made.__dict__.update(_tensordict=dict(tensors), _batch_size=tensors["task"].shape, _device=None, _td_dim_names=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensordict", types.ModuleType("tensordict"))
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(module, "TensorDict", kind, raising=False)
        torch.save(made, path)


def write_prompt_dt(file: Path, task: TaskSpec, lengths: Sequence[int], seed: int = 0, protocol: int = 4) -> list[Arrays]:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = [trajectory(task, length, seed + i) for i, length in enumerate(lengths)]
    published = [
        {
            "observations": one["observations"][:-1],
            "next_observations": one["observations"][1:],
            "actions": np.asfortranarray(one["actions"]),
            "rewards": one["rewards"][:, None],
            "terminals": (np.arange(length) == length - 1)[:, None],
            "episode_return": one["rewards"].sum(),  # a numpy scalar
        }
        for one, length in zip(written, lengths, strict=True)
    ]
    file.write_bytes(pickle.dumps(published, protocol=protocol))
    return written


def assert_holds(path: Path, written: Sequence[Arrays]) -> list[Episode]:
    """The dataset at `path` holds what was written, actions clipped, to the bit of float32."""
    read = list(read_episodes(path))
    assert len(read) == len(written)
    for episode, one in zip(read, written, strict=True):
        np.testing.assert_array_equal(episode.observations, one["observations"].astype(np.float32))
        np.testing.assert_array_equal(episode.actions, one["actions"].astype(np.float32).clip(-1, 1))
        np.testing.assert_array_equal(episode.rewards, one["rewards"].astype(np.float32))
    return read
