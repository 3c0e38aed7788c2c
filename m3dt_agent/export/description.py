"""What an exported file says of itself: in the JSON document beside it, and in its own metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..agent.conditions import Condition
from ..config import ModelConfig
from ..errors import ConfigError
from ..system.documents import read_document
from ..tasks import TaskSpec

METADATA_KEY = "m3dt"
"""Where the document is among an ONNX file's own metadata."""
N = "N"
"""The name of the dimension of slots, which may have any size."""


@dataclass(frozen=True, slots=True)
class TensorDescription:
    """An input or an output. shape: "N" is the number of slots, any from 1. meaning: what it holds, with its unit."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "float64", "int64", "bool"]
    meaning: str


@dataclass(frozen=True, slots=True)
class TaskDescription:
    """A task that the file acts in. Its number in the input "task" is its place in the list.

    observation: the entries of a dictionary of observations that are joined, in this order; none for one array.
    left_out_share: how much of the router's weight on this task went to experts that the file lacks, on the task's own steps.
    """

    name: str
    env: str
    obs_dim: int
    act_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    observation: tuple[str, ...]
    max_episode_steps: int
    target_return: float
    return_scale: float
    left_out_share: float


@dataclass(frozen=True, slots=True)
class Description:
    """An exported file: where it comes from, what acts in it, its tasks, its inputs and its outputs.

    experts: what acts, as `M3DTAgent.experts` says it.
    kept_experts: for each layer, the numbers in the bank of the experts that the file has.
    largest_difference: between actions of the file and of the agent in [-1, 1], in steps with random observations that were
    taken when it was made.
    """

    format: Literal["m3dt-policy"]
    format_version: Literal[1]
    bank_hash: str
    policy: str
    experts: str
    weights: Literal["float32", "int8"]
    least_share: float
    kept_experts: tuple[tuple[int, ...], ...]
    largest_difference: float
    tasks: tuple[TaskDescription, ...]
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    versions: dict[str, str]

    def to_json(self) -> str:
        """The document."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: object) -> Description:
        """The inverse of `to_json`. name: what errors call the file.

        Raises:
            ConfigError: it is no such document.
        """
        return read_document(text, cls, ConfigError, name=name)


def describe_task(task: TaskSpec, condition: Condition, left_out_share: float) -> TaskDescription:
    """What the document says of a task."""
    low, high = task.action_bounds
    return TaskDescription(
        name=task.name,
        env=task.env_id,
        obs_dim=task.obs_dim,
        act_dim=task.act_dim,
        action_low=low,
        action_high=high,
        observation=task.observation,
        max_episode_steps=task.max_episode_steps,
        target_return=condition.target_return,
        return_scale=condition.statistics.return_scale,
        left_out_share=left_out_share,
    )


def describe_tensors(
    config: ModelConfig, tasks: Sequence[TaskSpec]
) -> tuple[tuple[TensorDescription, ...], tuple[TensorDescription, ...]]:
    """The inputs and the outputs of a file for these tasks, in their order."""
    obs_dim, act_dim = max(task.obs_dim for task in tasks), max(task.act_dim for task in tasks)
    several = len(tasks) > 1
    padded = ", zero-padded to the widest task's" if several else ""
    history = (N, config.context_length, config.state_dim + config.act_dim + 1)
    state = {
        "history": TensorDescription("", history, "float32", "the last steps: normalized states, actions, returns-to-go"),
        "return_to_go": TensorDescription("", (N,), "float64", "the return still asked for, divided by the return scale"),
        "timestep": TensorDescription("", (N,), "int64", "steps since the episode began"),
    }
    given: Mapping[str, TensorDescription] = {
        "observation": TensorDescription("", (N, obs_dim), "float32", f"as the environment gives it{padded}"),
        "reward": TensorDescription("", (N,), "float64", "earned by the last action; 0 leaves the return-to-go as it is"),
        "reset": TensorDescription("", (N,), "bool", "True at the first step of an episode; reward and state are then ignored"),
        **state,
        **({"task": TensorDescription("", (N,), "int64", "the task's place in the list of tasks")} if several else {}),
    }
    action = TensorDescription("action", (N, act_dim), "float32", f"in the environment's own bounds{padded}")
    inputs = tuple(dataclasses.replace(tensor, name=name) for name, tensor in given.items())
    return inputs, (action, *(dataclasses.replace(tensor, name=f"next_{name}") for name, tensor in state.items()))
