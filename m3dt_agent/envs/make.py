"""`make_env`: the one place where the environment of a task is made, be it one of the 160 or one's own.

What runs is what the user installed or registered: a spec that came with a bank or a dataset makes no environment unless the
same one is registered here. Worker processes get the registrations of one's own tasks (`registrations`), because what a script
has registered is not registered there.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from ..errors import ConfigError, MissingDependencyError
from ..tasks import TaskSpec, is_builtin, register, registered, to_toml
from ..tasks.spaces import spec_of_spaces
from .own_task import OwnTask

Env = gym.Env[NDArray[np.float32], NDArray[np.float32]]


def make_env(task: TaskSpec, render_mode: str | None = None) -> Env:
    """The environment of a task: observations (obs_dim,) float32, actions (act_dim,) in [-1, 1], `info["success"]`.

    Args:
        render_mode: "rgb_array" if `render` is to draw frames.

    Raises:
        ConfigError: the task is not registered here, or otherwise; Gymnasium has no environment of this id, or it does not fit.
        MissingDependencyError: its simulator is not installed.
    """
    mode: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    if is_builtin(task):
        return gym.make(task.env_id, disable_env_checker=True, **mode)
    _require_registered(task)
    try:
        env = gym.make(
            task.env_id,
            max_episode_steps=task.max_episode_steps,
            disable_env_checker=True,
            **dict(task.env_kwargs),
            **mode,
        )
    except gym.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"{task.name}: {task.env_id} needs a package that is not installed: {error}") from error
    except (gym.error.Error, TypeError) as error:  # TypeError: env_kwargs that the environment does not take
        raise _cannot_be_made(task, error) from error
    try:
        return OwnTask(env, task)
    except ConfigError:
        env.close()
        raise


def _cannot_be_made(task: TaskSpec, error: Exception) -> ConfigError:
    return ConfigError(
        f"{task.name}: Gymnasium cannot make {task.env_id!r}: {error}; import the module that registers it with "
        "gymnasium.register (m3dt --import MODULE), or install the package that does"
    )


def _require_registered(task: TaskSpec) -> None:
    here = registered(task.name)
    if here == task:
        return
    table = to_toml([task])
    if here is None:
        raise ConfigError(
            f"task {task.name!r} is not registered here, and what a bank says of a task runs nothing; if you trust it, put "
            f"this table into a file and name the file with --tasks or in M3DT_TASKS:\n{table}"
        )
    mine, theirs = here.to_dict(), task.to_dict()
    differ = ", ".join(sorted(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)))
    raise ConfigError(f"task {task.name!r} is registered here with other values of {differ}; asked for is:\n{table}")


def task_of_env(env_id: str, **given: Any) -> TaskSpec:
    """The spec of a registered environment: widths, bounds and length are read from it, everything else is given.

    given: fields of `TaskSpec`; name, return_scale and score are needed. What is given is not read.

    Raises:
        ConfigError: spaces that cannot be used, actions without bounds, episodes without end, or what `TaskSpec` refuses.
    """
    kwargs = given.get("env_kwargs", {})
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except gym.error.Error as error:
        raise ConfigError(f"Gymnasium cannot make {env_id!r}: {error}") from error
    with contextlib.closing(env):
        return spec_of_spaces(
            env.observation_space,
            env.action_space,
            None if env.spec is None else env.spec.max_episode_steps,
            env_id,
            **{"env": env_id, "domain": "own", **given},
        )


def versions_of(task: TaskSpec) -> dict[str, str]:
    """Package → version of what decides how a task of one's own behaves: Gymnasium, and who made its environment."""
    packages = {"gymnasium"}
    spec = gym.registry.get(task.env_id)
    if spec is not None:
        point = spec.entry_point
        module = point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")
        packages.update(importlib.metadata.packages_distributions().get(module.partition(".")[0], ()))
    return {name: importlib.metadata.version(name) for name in sorted(packages)}


@dataclass(frozen=True, slots=True)
class Registrations:
    """Tasks of one's own, and Gymnasium's records of their environments, on the way to a worker process."""

    tasks: tuple[TaskSpec, ...] = ()
    environments: tuple[EnvSpec, ...] = ()

    def require_importable(self) -> None:
        """Checks that another process can make these environments.

        Raises:
            ConfigError: one was registered with a function or class that another process cannot import.
        """
        for spec in self.environments:
            try:
                pickle.dumps(spec)
                in_script = getattr(spec.entry_point, "__module__", "") == "__main__"
            except (pickle.PicklingError, AttributeError, TypeError):
                in_script = True
            if in_script:
                raise ConfigError(
                    f"{spec.id} was registered with {spec.entry_point!r}, which a worker process cannot import; put it in a "
                    'module and register it by name, entry_point="module:name", or use workers=0'
                )

    def adopt(self) -> None:
        """Registers them here as they were where `registrations` was called. Environments that are there stay."""
        for task in self.tasks:
            register(task)
        for spec in self.environments:
            if spec.id not in gym.registry and isinstance(spec.entry_point, str):
                with contextlib.suppress(ImportError):  # gym.make then says what is missing
                    importlib.import_module(spec.entry_point.partition(":")[0])  # it may register the id itself
            gym.registry.setdefault(spec.id, spec)


def registrations(tasks: Iterable[TaskSpec]) -> Registrations:
    """What worker processes need to make the environments of these tasks.

    Raises:
        ConfigError: a task, or its environment, is not registered here.
    """
    own = tuple(dict.fromkeys(task for task in tasks if not is_builtin(task)))
    for task in own:
        _require_registered(task)
        try:
            gym.spec(task.env_id)
        except gym.error.Error as error:
            raise _cannot_be_made(task, error) from error
    names = dict.fromkeys(task.env_id for task in own)
    specs = tuple(gym.registry[name] for name in names if name in gym.registry)
    return Registrations(own, specs)
