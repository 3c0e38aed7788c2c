"""Minari's own recordings of environments that are not among the 160: imported, and turned into specs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from own_tasks import POINT, SWING, WIDE

from m3dt_agent import tasks
from m3dt_agent.data.episodes import read_episodes, validate_dataset
from m3dt_agent.data.shards import rollout
from m3dt_agent.envs.make import make_env
from m3dt_agent.errors import ConfigError, DatasetError
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.published.own_minari import spec_of_dataset
from m3dt_agent.tasks import TaskSpec

pytestmark = pytest.mark.usefixtures("own_registry")


def record(task: TaskSpec, id_: str, episodes: int = 3) -> Path:
    """A dataset of random actions, written by Minari itself; returns its folder.

    Minari's own collector needs jax to stack what it has seen; this does the same with NumPy.
    """
    env = gym.make(task.env_id, max_episode_steps=task.max_episode_steps)
    env.action_space.seed(0)
    buffers = []
    for seed in range(episodes):
        observation, info = env.reset(seed=seed)
        steps: list[tuple[object, ...]] = []
        observations, infos = [observation], [info]
        while not steps or not (steps[-1][2] or steps[-1][3]):
            action = env.action_space.sample()
            observation, reward, terminated, truncated, info = env.step(action)
            steps.append((action, reward, terminated, truncated))
            observations.append(observation)
            infos.append(info)
        columns = dict(
            zip(("actions", "rewards", "terminations", "truncations"), map(np.array, zip(*steps, strict=True)), strict=True)
        )
        known = infos if infos[0] else [{}]
        buffers.append(EpisodeBuffer(seed=seed, observations=stacked(observations), infos=stacked(known) or None, **columns))
    dataset = minari.create_dataset_from_buffers(id_, buffers, env=env)
    env.close()
    return Path(dataset.storage.data_path).parent


def stacked(values: list[Any]) -> Any:
    """Arrays of values, one along the first axis; dictionaries entry by entry."""
    if isinstance(values[0], dict):
        return {key: stacked([one[key] for one in values]) for key in values[0]}
    return np.array(values)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "root"


@pytest.mark.parametrize("task", [SWING, POINT, WIDE], ids=lambda task: task.name)
def test_a_recording_is_imported_as_the_environment_would_be_seen(task: TaskSpec, root: Path) -> None:
    tasks.register(task)
    path = record(task, f"own/{task.name}/random-v2")
    (summary,) = import_datasets("minari", path, root, [task])
    assert (summary.episodes, summary.clipped_actions) == (3, 0)
    assert validate_dataset(summary.path, task) == []
    env = make_env(task)
    for seed, episode in enumerate(read_episodes(summary.path)):
        again = rollout(env, task, _Replay(episode.actions), seed)
        np.testing.assert_allclose(again.observations, episode.observations, rtol=0, atol=1e-4)
        np.testing.assert_allclose(again.rewards, episode.rewards, rtol=0, atol=1e-3)
        if task.has_success:
            np.testing.assert_array_equal(again.success, episode.success)
        assert episode.seed == seed
    env.close()


class _Replay:
    def __init__(self, actions: np.ndarray) -> None:
        self._actions = iter(actions)

    def reset(self, seed: int) -> None:
        """Nothing to do."""

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return next(self._actions)


def test_a_spec_is_read_from_a_recording(root: Path) -> None:
    path = record(POINT, "own/point/random-v0")
    read = spec_of_dataset(path, name="own-point", domain="lines", score="success", return_scale=10.0)
    assert dataclasses.replace(read, observation=POINT.observation) == POINT
    assert read.observation == ("goal/at", "observation")
    scale = spec_of_dataset(path, name="own-point", score="success").return_scale
    returns = [float(episode.rewards.sum()) for episode in minari.load_dataset("own/point/random-v0").iterate_episodes()]
    assert scale == pytest.approx(max(map(abs, returns)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_dim": 4}, "obs_dim is 4, but observations of .* have 3 entries"),
        ({"action_low": None, "action_high": None}, "which of them -1 and 1 are to mean"),
        ({"action_low": (-3.0,)}, "set action_low and action_high"),
        ({"observation": ("a",)}, "no entry 'a'"),
        ({"score": "success"}, "neither infos/success nor infos/is_success"),
        ({"max_episode_steps": 150}, "150"),
    ],
)
def test_a_recording_that_does_not_fit_is_named(root: Path, changes: dict[str, object], message: str) -> None:
    path = record(SWING, "own/swing/random-v0", episodes=1)
    task = dataclasses.replace(SWING, **changes)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=message):
        import_datasets("minari", path, root, [task])
    assert not list(root.glob("m3dt/**/*.hdf5"))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"type": "Discrete", "n": 3}, "is Discrete; only boxes"),
        ({"type": "Box", "shape": [10**9], "dtype": "float32", "low": [0], "high": [1]}, "bounds of"),
        ({"type": "Box", "shape": [3], "dtype": "O", "low": [0] * 3, "high": [1] * 3}, "box of object"),
        ({"type": "Box", "shape": [3]}, "is no space"),
        ({"type": "Dict", "subspaces": [1]}, "is no space"),
        ("x" * 100_000, "is no space"),
        (None, "is no space"),
    ],
)
def test_a_strange_space_is_refused(root: Path, space: object, message: str) -> None:
    path = record(SWING, "own/swing/random-v0", episodes=1)
    file = path / "data" / "metadata.json"
    metadata = json.loads(file.read_text()) | {"observation_space": json.dumps(space)}
    file.write_text(json.dumps(metadata))
    with pytest.raises(DatasetError, match=message):
        import_datasets("minari", path, root, [SWING])
    with pytest.raises((ConfigError, DatasetError), match=message):
        spec_of_dataset(path, name="swing", score="return")


def test_from_a_recording_to_a_dataset_on_the_command_line(root: Path, run: Any) -> None:
    record(SWING, "own/swing/random-v0")
    file = root.parent / "own.toml"
    described = ("data", "task", "own/swing/random-v0", "own-swing", "--score", "-1500:0", "--domain", "classic")
    code, out, _ = run(*described, "--to", file)
    assert (code, out) == (0, file.read_text())
    (read,) = tasks.read_tasks(file)
    assert dataclasses.replace(read, return_scale=200.0) == SWING
    code, _, err = run("--tasks", file, "data", "import", "minari", "own/swing/random-v0", "own-swing", "--root", root)
    assert (code, err) == (0, "")
    code, out, _ = run("data", "validate", "--root", root)
    assert (code, "ok" in out) == (0, True)
    code, _, err = run("data", "task", "own/swing/random-v0", "x", "--score", "best")
    assert (code, "LOW:HIGH" in err) == (1, True)


def to_the_maze_goal(observation: Any) -> np.ndarray:
    """Steps of 0.5 at most to the goal."""
    way = 2.0 * (observation["desired_goal"] - observation["achieved_goal"])
    return np.pad(way / max(1.0, np.abs(way).max()), (0, 6)).astype(np.float32)


LAYOUTS: dict[str, tuple[str, int, Any]] = {
    "mujoco/halfcheetah/expert-v0": ("HalfCheetah-v5", 100, lambda seen: np.sin(seen[:6]).astype(np.float32)),
    "D4RL/door/human-v2": ("m3dt-tests/Door-v0", 50, lambda seen: seen[:28].astype(np.float32)),
    "D4RL/antmaze/umaze-v1": ("m3dt-tests/AntMaze-v0", 40, to_the_maze_goal),
}


@pytest.mark.slow
def test_recordings_of_minaris_own_collector_are_imported_and_trained_on(root: Path, run: Any) -> None:
    pytest.importorskip("jax", reason="Minari's collector needs it")
    file, names = root.parent / "own.toml", []
    for id_, (env_id, steps, policy) in LAYOUTS.items():
        env = minari.DataCollector(gym.make(env_id, max_episode_steps=steps), record_infos=env_id != "HalfCheetah-v5")
        for seed in range(4):
            observation, _ = env.reset(seed=seed)
            over = False
            while not over:
                observation, _, terminated, truncated, _ = env.step(policy(observation))
                over = terminated or truncated
        env.create_dataset(dataset_id=id_, algorithm_name="by hand")
        env.close()
        names.append(id_.split("/")[1])
        score = "0:100" if names[-1] == "halfcheetah" else "success"
        code, _, err = run("data", "task", id_, names[-1], "--score", score, "--to", file)
        assert code == 0, err
        code, _, err = run("--tasks", file, "data", "import", "minari", id_, names[-1], "--root", root)
        assert code == 0, err
    read = {task.name: task for task in tasks.read_tasks(file)}
    widths = {name: (task.obs_dim, task.act_dim, task.max_episode_steps) for name, task in read.items()}
    assert widths == {"halfcheetah": (17, 6, 100), "door": (39, 28, 50), "antmaze": (31, 8, 40)}
    assert read["antmaze"].observation == ("achieved_goal", "desired_goal", "observation")
    given = ("--source", "published", "--root", root, "--bank", root.parent / "bank", "--preset", "tiny", "--steps", 30)
    code, _, err = run("--tasks", file, "train", *names, *given, "--experts", 2)
    assert code == 0, err
    code, out, err = run("--tasks", file, "eval", root.parent / "bank", "--episodes", 2, "--workers", 0, "--json")
    assert code == 0, err
    assert set(json.loads(out)["tasks"]) == set(names)
