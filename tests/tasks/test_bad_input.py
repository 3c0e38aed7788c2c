"""What is no task, in every place where a task comes from: a named error before anything is imported, written or allocated.

Each case is prepared, and then tried twice: once to load what our own modules need, and once under watch. Then no module is
imported, no file is written or removed, nothing around the case is read, no program is started, and no more than 256 MB of
memory can be had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from contracts import random_bank
from fuzz.guard import Guard
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Space, Text, Tuple
from own_tasks import POINT, SWING, WIDE

from m3dt_agent import M3DTAgent, tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.demonstrations import demonstrations
from m3dt_agent.data.episodes import Episode
from m3dt_agent.envs.make import make_env, task_of_env
from m3dt_agent.errors import M3DTError
from m3dt_agent.evaluation import evaluate, evaluate_in_jobs, play
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.published.own_minari import spec_of_dataset
from m3dt_agent.jobs import LocalProcesses
from m3dt_agent.tasks import TaskSpec, read_tasks, to_toml

MOST_BYTES = 256 << 20
BILLION = 10**9
BOX = Box(-1.0, 1.0, (3,), np.float32)
SPACES: dict[str, Space[Any]] = {
    "Discrete": Discrete(3),
    "MultiDiscrete": MultiDiscrete([3, 2]),
    "MultiBinary": MultiBinary(4),
    "Tuple": Tuple((BOX, BOX)),
    "Text": Text(3),
    "Sequence": Sequence(BOX),
    "image": Box(0, 255, (64, 64, 3), np.uint8),
    "without bounds": Box(-np.inf, np.inf, (3,), np.float32),
    "bounded below": Box(np.float32(-1.0), np.float32(np.inf), (3,), np.float32),
}
CANARY = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"
Case = tuple[Callable[["Place"], Callable[[], object]], str]


class Strange(gym.Env[Any, Any]):
    """An environment with one space that cannot be used."""

    def __init__(self, action: str = "", observation: str = "", entry: str = "", render_mode: str | None = None) -> None:
        self.action_space = SPACES.get(action, BOX)
        self.observation_space = Dict({"a": SPACES[entry]}) if entry else SPACES.get(observation, BOX)


class Place:
    """Where a case is: a bank of SWING and a dataset of it, both of strangers, and files around them."""

    def __init__(self, folder: Path, common: Path) -> None:
        self.folder, self.bank, self.dataset, self.toml = folder, folder / "bank", folder / "dataset", folder / "own.toml"
        shutil.copytree(common / "bank", self.bank)
        shutil.copytree(common / "dataset", self.dataset)
        self.toml.write_text(to_toml([SWING]))
        (folder / "around").mkdir()
        (folder / "around" / "evil.py").write_text(CANARY)

    def edited_bank(self, spec: dict[str, Any], name: str = SWING.name, model: dict[str, Any] | None = None) -> Path:
        """The bank, whose spec and model are said to be others, and the spec that of the task `name`."""
        file = self.bank / "bank.json"
        document = json.loads(file.read_text())
        document["specs"] = {name: document["specs"][SWING.name] | spec}
        document |= {"tasks": [name], "model": document["model"] | (model or {})}
        file.write_text(json.dumps(document))
        return self.bank

    def edited_dataset(self, **changes: Any) -> Path:
        """The dataset, whose metadata say something else."""
        file = self.dataset / "data" / "metadata.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return self.dataset

    def edited_toml(self, before: str, after: str) -> Path:
        text = self.toml.read_text()
        assert before in text
        self.toml.write_text(text.replace(before, after))
        return self.toml


def env_with(message: str, **part: str) -> Case:
    """An environment with one space of `SPACES`, read as a task and made as one that is registered."""

    def prepare(place: Place) -> Callable[[], object]:
        given = {"return_scale": 1.0, "score": "return", "max_episode_steps": 5, "env_kwargs": part}
        shape = {"obs_dim": 3, "act_dim": 3, "observation": ("a",) if "entry" in part else ()}
        task = tasks.register(TaskSpec("strange", "own", env="m3dt-tests/Strange-v0", **given, **shape))  # type: ignore[arg-type]

        def both() -> None:
            with pytest.raises(M3DTError, match=message if "bounds" not in message else "which of them -1 and 1"):
                make_env(task)
            task_of_env("m3dt-tests/Strange-v0", name="strange", **given)

        return both

    return prepare, message


def spec(message: str, **changes: Any) -> Case:
    return lambda place: lambda: dataclasses.replace(SWING, **changes), message


def in_toml(before: str, after: str, message: str) -> Case:
    def prepare(place: Place) -> Callable[[], object]:
        path = place.edited_toml(before, after)
        return lambda: read_tasks(path)

    return prepare, message


def in_bank(message: str, *, name: str = SWING.name, model: dict[str, Any] | None = None, **changes: Any) -> Case:
    def prepare(place: Place) -> Callable[[], object]:
        path = place.edited_bank(changes, name, model)
        return lambda: ExpertBank.open(path, read_only=True)

    return prepare, message


def forged(name: str) -> Case:
    """A bank with a task of this name."""

    def prepare(place: Place) -> Callable[[], object]:
        path = place.edited_bank({"name": name}, name)
        return lambda: ExpertBank.open(path, read_only=True)

    return prepare, "name must be"


def in_dataset(message: str, *, imported: bool = True, **changes: Any) -> Case:
    """imported: whether the dataset is refused as data of SWING too, not only where a spec is read from it."""

    def prepare(place: Place) -> Callable[[], object]:
        path = place.edited_dataset(**changes)

        def both() -> None:
            if imported:
                with pytest.raises(M3DTError, match=message):
                    import_datasets("minari", path, place.folder / "root", [SWING])
            spec_of_dataset(path, name="swing", score="return")

        return both

    return prepare, message


def with_bank(act: Callable[[ExpertBank, TaskSpec], object], message: str, here: TaskSpec | None = None, **said: Any) -> Case:
    """A bank whose spec says `said`; `here` is what is registered under its name."""

    def prepare(place: Place) -> Callable[[], object]:
        bank = ExpertBank.open(place.edited_bank(said), read_only=True)
        if here is not None:
            tasks.register(here)
        return lambda: act(bank, bank.tasks[0])

    return prepare, message


CONFIG = EvalConfig(episodes=1, workers=0)
ACTS: dict[str, Callable[[ExpertBank, TaskSpec], object]] = {
    "make_env": lambda bank, task: make_env(task),
    "evaluate": lambda bank, task: evaluate(M3DTAgent.load(bank.path), [task], CONFIG, progress=False),
    "evaluate with workers": lambda bank, task: evaluate("random", [task], EvalConfig(episodes=1, workers=2), progress=False),
    "evaluate in jobs": lambda bank, task: evaluate_in_jobs(bank, [task], CONFIG, LocalProcesses(2), progress=False),
    "play": lambda bank, task: play(M3DTAgent.load(bank.path), task),
    "collect": lambda bank, task: collect([task], bank.path.parent / "root", CollectConfig({"random": 1.0}, 1), workers=0),
}
HEAVY = dataclasses.replace(SWING, env_kwargs={"g": 20.0})
NAMES = ("../x", "..", "a/b", "a\\b", "a:b", "/etc/x", "\u202ex", "x" * 65, "", "x\n", "\u0663")


def _episode(task: TaskSpec, length: int) -> Episode:
    shapes = ((length + 1, task.obs_dim), (length, task.act_dim), (length,))
    observations, actions, rewards = (np.zeros(shape, np.float32) for shape in shapes)
    ends = np.zeros(length, bool)
    return Episode(observations, actions, rewards, ends, ends)


def _shown(task: TaskSpec, of: TaskSpec, length: int, message: str) -> Case:
    return lambda place: lambda: demonstrations(task, [_episode(of, length)]), message


CASES: dict[str, Case] = {
    # spaces that are no boxes of numbers
    **{f"action {kind}": env_with(f"is {kind}; only boxes", action=kind) for kind in list(SPACES)[:6]},
    **{f"observation {kind}": env_with(f"is {kind}; only boxes", observation=kind) for kind in list(SPACES)[:6]},
    **{f"entry {kind}": env_with(f"is {kind}; only boxes", entry=kind) for kind in ("Discrete", "Tuple", "MultiDiscrete")},
    "observation image": env_with("is an image", observation="image"),
    "action image": env_with("is an image", action="image"),
    "entry image": env_with("is an image", entry="image"),
    **{
        f"dataset of {kind}": in_dataset(f"is {kind}; only boxes", action_space=json.dumps({"type": kind, "n": BILLION}))
        for kind in ("Discrete", "MultiDiscrete", "Tuple", "Text")
    },
    # bounds
    "action without bounds": env_with("have no bounds; give action_low", action="without bounds"),
    "action bounded below": env_with("have no bounds; give action_low", action="bounded below"),
    "spec with infinite bounds": spec("action_low must be 1 finite numbers", action_low=(-np.inf,)),
    "file with infinite bounds": in_toml("[-2.0]", "[-inf]", "action_low must be 1 finite numbers"),
    "bank with bounds that are no numbers": in_bank("action_low", action_low=["-2"]),
    "bank with bounds of 1e400": in_bank("action_low", action_low=[10**400]),
    "dataset without bounds": in_dataset(
        "have no bounds; give action_low",
        imported=False,
        action_space='{"type": "Box", "dtype": "float32", "shape": [1], "low": [-Infinity], "high": [Infinity]}',
    ),
    # widths that do not fit
    "spec wider than its bounds": spec("action_low must be 2 finite numbers", act_dim=2),
    "bank with another width": in_bank("damaged|has 1|width|entries|the model takes", action_low=[-2.0, -2.0]),
    "dataset of another width": in_dataset(
        "have 4 entries|bounds of",
        observation_space='{"type": "Box", "dtype": "float32", "shape": [4], "low": [-1, -1, -1], "high": [1, 1, 1]}',
    ),
    "demonstration of another width": _shown(SWING, WIDE, 5, r"observations is \(6, 46\); it must be \(6, 3\)"),
    "demonstration of another action": _shown(
        dataclasses.replace(SWING, act_dim=2, action_low=None, action_high=None),
        SWING,
        5,
        r"actions is \(5, 1\); it must be \(5, 2\)",
    ),
    # episodes without end
    "environment without end": (
        lambda place: lambda: task_of_env("m3dt-tests/Strange-v0", name="s", return_scale=1.0, score="return"),
        "have no end; give max_episode_steps",
    ),
    "demonstration without end": _shown(POINT, POINT, 21, "it has 21 steps; the task ends after 20"),
    "spec without end": spec("max_episode_steps must be an integer from 1", max_episode_steps=None),
    "file without end": in_toml("max_episode_steps = 200\n", "", "lacks max_episode_steps"),
    # a spec from a downloaded bank, whose environment is not registered here, or otherwise
    **{f"{what}, not registered": with_bank(act, "'own-swing' is not registered here") for what, act in ACTS.items()},
    **{
        f"{what}, registered otherwise": with_bank(act, "registered here with other values of env_kwargs", HEAVY)
        for what, act in ACTS.items()
    },
    # forged names
    **{f"spec called {name!r:.12}": spec("name must be", name=name) for name in NAMES},
    **{f"bank with {name!r:.12}": forged(name) for name in NAMES},
    "file with ../x": in_toml("[own-swing]", '["../x"]', "name must be"),
    "bank that calls one as another": in_bank("not the name of one of its tasks", name="own-point"),
    "bank with a name of the 160": in_bank("not the name of one of its tasks", name="reach"),
    "domain ../x": spec("domain must be", domain="../x"),
    # widths of a billion
    **{
        f"spec with {key} of a billion": spec(f"{key} must be an integer from 1", **{key: BILLION})
        for key in ("obs_dim", "act_dim")
    },
    "spec with a billion steps": spec("max_episode_steps must be an integer from 1", max_episode_steps=BILLION),
    "file with a billion": in_toml("obs_dim = 3", "obs_dim = 1_000_000_000", "obs_dim must be an integer from 1"),
    "bank with a billion": in_bank("obs_dim must be an integer from 1", obs_dim=BILLION),
    "bank with a billion steps": in_bank("max_episode_steps must be an integer from 1", max_episode_steps=BILLION),
    "bank with a model of a billion": in_bank("state_dim must be at most", model={"state_dim": BILLION}, obs_dim=1000),
    "bank with a task wider than its model": in_bank("1000 .* the model takes 39", obs_dim=1000),
    "dataset with a billion": in_dataset(
        "bounds of",
        observation_space=json.dumps({"type": "Box", "dtype": "float32", "shape": [BILLION], "low": [0], "high": [1]}),
    ),
    # arguments of environments
    "bank with a path for the environment": with_bank(
        ACTS["make_env"], "is not registered here", env="HalfCheetah-v5", env_kwargs={"xml_file": "around/evil.xml"}
    ),
    "bank with another argument": with_bank(
        ACTS["make_env"], "other values of env_kwargs", SWING, env_kwargs={"g": 1.0, "xml_file": "around/evil.xml"}
    ),
    "bank with arguments that are no table": in_bank("env_kwargs", env_kwargs=["os.system"]),
    # paths of modules
    "spec of a module": spec("would import the module", env="evil:Env-v0"),
    "file with a module": in_toml('"Pendulum-v1"', '"evil:Env-v0"', "would import the module"),
    "bank with a module": in_bank("would import the module", env="evil:Env-v0"),
    "dataset recorded in a module": in_dataset(
        "would import the module", imported=False, env_spec=json.dumps({"id": "evil:Env-v0"})
    ),
}


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained bank of SWING and a Minari dataset of it."""
    folder = tmp_path_factory.mktemp("strangers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.registry, "_own", {})
        random_bank(folder / "bank", demonstrations(SWING, [_episode(SWING, 5)]), ModelConfig.preset("tiny", n_experts=1))
    data = folder / "dataset" / "data"
    data.mkdir(parents=True)
    spaces = {"observation_space": (SWING.obs_dim, 8.0), "action_space": (SWING.act_dim, 2.0)}
    metadata = {
        name: json.dumps({"type": "Box", "dtype": "float32", "shape": [n], "low": [-most] * n, "high": [most] * n})
        for name, (n, most) in spaces.items()
    }
    (data / "metadata.json").write_text(json.dumps({"total_episodes": 1, "total_steps": 5, "data_format": "hdf5", **metadata}))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        episode = _episode(SWING, 5)
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            file[f"episode_0/{name}"] = getattr(episode, name)
    return folder


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(Path("/nowhere"), Path("/nowhere"))


@pytest.fixture
def place(tmp_path: Path, common: Path, own_registry: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    gym.register("m3dt-tests/Strange-v0", entry_point=Strange)  # type: ignore[arg-type]  # as Gymnasium's own environments are registered
    made = Place(tmp_path / "place", common)
    monkeypatch.syspath_prepend(str(made.folder / "around"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(made.folder)
    yield made
    gym.registry.pop("m3dt-tests/Strange-v0")


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_before_anything_happens(name: str, place: Place, guard: Guard) -> None:
    prepare, message = CASES[name]
    attempt = prepare(place)
    before = content(place.folder)
    with pytest.raises(M3DTError, match=message):
        attempt()
    modules = set(sys.modules)
    guard.base, guard.box = str(place.folder / "around"), "/nowhere"
    guard.arm()
    try:
        with limited_memory(), pytest.raises(M3DTError, match=message):
            attempt()
    finally:
        seen = guard.disarm()
    assert seen == []
    assert set(sys.modules) == modules
    assert "evil" not in modules
    assert content(place.folder) == before


class limited_memory:  # noqa: N801
    """At most `MOST_BYTES` more can be had inside."""

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def test_the_watch_sees_what_it_watches(place: Place, guard: Guard) -> None:
    """Each of the things that no case may do is noticed."""
    guard.base, guard.box = str(place.folder / "around"), "/nowhere"
    for wrong, told in (
        (lambda: (place.folder / "new").touch(), "open for writing"),
        (lambda: (place.folder / "around" / "evil.py").read_text(), "reads"),
        (lambda: __import__("evil"), "reads .*evil.py"),
    ):
        guard.arm()
        with contextlib.suppress(PermissionError):
            wrong()
        seen = guard.disarm()
        assert re.search(told, " ".join(seen))
    sys.modules.pop("evil", None)
    with limited_memory(), pytest.raises(MemoryError):
        np.zeros(BILLION, np.float32)
