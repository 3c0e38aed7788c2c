"""An exported file, run by onnxruntime: as a policy for `evaluate`, and for loops in Python that have this package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..agent.inputs import Bools, Float32Array
from ..errors import ConfigError, MissingDependencyError
from ..system.disk import open_regular, user_path
from ..tasks import TaskSpec, lookup, padded_widths
from ..tasks.spaces import from_env
from .description import METADATA_KEY, Description

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

State = dict[str, npt.NDArray[Any]]
_STATE = ("history", "return_to_go", "timestep")


def require_packages(*names: str) -> None:
    """Checks that packages of the extra `export` are installed.

    Raises:
        MissingDependencyError: one is not.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"ONNX files need {', '.join(missing)}: pip install 'm3dt-agent[export]'")


def open_session(model: bytes, threads: int | None = None) -> InferenceSession:
    """A session of onnxruntime on the CPU. threads: None leaves their number to onnxruntime, which uses every core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class ExportedPolicy:
    """A file of `export_policy` in N slots: a policy that `evaluate` takes. Its actions are in [-1, 1], as an agent's.

    Attributes:
        description: what the file says of itself. name, bank_hash: as rows have them.

    Args:
        path: the .onnx file. threads: of onnxruntime; None: as many as there are cores.

    Raises:
        PathError: the file cannot be read. MissingDependencyError: onnxruntime is not installed.
        ConfigError: it is no file of `export_policy`.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        file = user_path(path)
        with open_regular(file) as opened:
            self._open(opened.read(), file, threads)

    @classmethod
    def from_content(cls, content: bytes, name: object = "the model", *, threads: int | None = None) -> ExportedPolicy:
        """As of a file with this content. name: what errors call it."""
        policy = cls.__new__(cls)
        policy._open(content, name, threads)
        return policy

    def _open(self, content: bytes, name: object, threads: int | None) -> None:
        require_packages("onnxruntime")
        try:
            self._session = open_session(content, threads)
        except Exception as error:  # onnxruntime's own classes, which have no common base
            shown = " ".join(str(error).split())
            raise ConfigError(f"{name} is no ONNX file that onnxruntime can run: {shown:.200}") from error
        found = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in found:
            raise ConfigError(f"{name} was not written by `m3dt export`: it does not say what it is")
        self.description = Description.from_json(found[METADATA_KEY], name)
        self.name, self.bank_hash = self.description.policy, self.description.bank_hash

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        """Prepares for new episodes: slot i acts in tasks[i]. seeds: not used.

        Raises:
            UnknownTaskError: a task that the file does not have.
        """
        places = {task.name: i for i, task in enumerate(self.description.tasks)}
        self._numbers = np.array([lookup(places, task.name, "task of this file") for task in tasks], np.int64)  # (N,)
        self._tasks, self._width = tasks, padded_widths(tasks)[1]
        self._state = new_state(self.description, len(tasks))

    def act(
        self, obs: Float32Array, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools
    ) -> Float32Array:
        """As `evaluation.VectorPolicy` says."""
        actions = np.zeros((len(obs), self._width), np.float32)
        given: dict[str, npt.NDArray[Any]] = {
            "observation": self._observations(obs[active]),
            "reward": np.zeros(int(active.sum())) if reward is None else np.asarray(reward, np.float64)[active],
            "reset": reset_mask[active],
            "task": self._numbers[active],
        }
        found = run(self._session, self.description, given | {name: rows[active] for name, rows in self._state.items()})
        for name, rows in self._state.items():
            rows[active] = found[f"next_{name}"]
        for i, own in zip(np.flatnonzero(active).tolist(), found["action"], strict=True):
            task = self._tasks[i]
            actions[i, : task.act_dim] = from_env(task, own[: task.act_dim])
        return actions

    def _observations(self, obs: Float32Array) -> Float32Array:
        """(n, W) observations in the file's width: what is added or cut off is padding."""
        rows = np.zeros((len(obs), int(self.description.inputs[0].shape[1])), np.float32)
        width = min(rows.shape[1], obs.shape[1])
        rows[:, :width] = obs[:, :width]
        return rows


def new_state(description: Description, n_slots: int) -> State:
    """The state of slots that have not acted yet: zeros."""
    inputs = {tensor.name: tensor for tensor in description.inputs}
    return {name: np.zeros((n_slots, *map(int, inputs[name].shape[1:])), inputs[name].dtype) for name in _STATE}


def run(session: InferenceSession, description: Description, given: Mapping[str, npt.NDArray[Any]]) -> State:
    """The outputs by name, from the inputs by name; what is no input of the file is left out."""
    names = [tensor.name for tensor in description.outputs]
    inputs = {tensor.name: given[tensor.name] for tensor in description.inputs}
    return dict(zip(names, session.run(names, inputs), strict=True))
