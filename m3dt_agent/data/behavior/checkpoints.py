"""What a run of `train_behavior` leaves on disk: checkpoints to continue from, and the policies it exports.

    folder/checkpoint-000010000/     the newest checkpoint, renamed into place whole; older ones are removed after it
        state.safetensors            networks, optimizers and keys leaf by leaf, and the filled part of the replay buffer
        snapshots.safetensors        <steps>/{w0,b0,w1,b1,w2,b2}: the actor at every checkpoint so far
        progress.json                task, seed, algorithm, start, and every snapshot's steps and measured return
    folder/policies.safetensors      <task>/<level>/{w0,…} in float16, as in `assets/behavior_policies.safetensors`
    folder/returns.json              their measured returns, as in `assets/behavior_returns.json`

Snapshots become levels by where their mean return lies between the untrained policy's (0) and the best one's (1): expert is the
best snapshot, medium the one nearest to 0.6, novice the one nearest to 0.25. A level is left out if no snapshot is near enough.
A run that began with another policy exports its expert alone, because its first snapshot is no untrained policy.

Nothing is pickled: a checkpoint holds arrays and JSON only. A resumed run begins a new episode and draws other exploration
noise, so it continues the training but does not repeat an uninterrupted run bit by bit.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from ...errors import ConfigError, PathError
from ...system.disk import disk_space_errors, open_regular, publish, scratch_folder, write_file
from ...system.documents import read_document
from ...tasks import TaskSpec
from .catalog import MeasuredReturn
from .learners import Layers, learned, set_learned
from .policies import LAYER_NAMES

_BUFFER_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_LEVEL_TARGETS = {"novice": (0.25, 0.1), "medium": (0.6, 0.15)}  # level → (share of the way to the best, how far off at most)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The actor after `steps` environment steps, and the return it was measured to reach."""

    steps: int
    layers: Layers
    measured: MeasuredReturn


@dataclass(frozen=True, slots=True)
class Run:
    """Which run a folder holds; the fields are as in `BehaviorTrainingConfig`. One with another cannot continue it."""

    task: str
    seed: int
    algorithm: str = "sac"
    start: str | None = None

    def __str__(self) -> str:
        start = "" if self.start is None else f" from {self.start!r}"
        return f"{self.task!r} with {self.algorithm}{start} and seed {self.seed}"


@dataclass(frozen=True, slots=True)
class _Progress:
    """The content of `progress.json`. returns: steps, as text → what the snapshot was measured to reach."""

    task: str
    seed: int
    returns: dict[str, MeasuredReturn]
    algorithm: str = "sac"
    start: str | None = None


def export(
    task: TaskSpec, snapshots: Sequence[Snapshot], folder: Path, *, only_expert: bool = False
) -> dict[str, MeasuredReturn]:
    """Writes `policies.safetensors` and `returns.json` for the snapshots chosen as levels; returns level → measured return.

    Raises:
        DiskSpaceError: the disk is full.
    """
    chosen = choose_levels(snapshots)
    if only_expert:
        chosen = {"expert": chosen["expert"]}
    tensors = {
        f"{task.name}/{level}/{name}": layer.astype(np.float16)
        for level, snapshot in chosen.items()
        for name, layer in zip(LAYER_NAMES, snapshot.layers, strict=True)
    }
    returns = {level: snapshot.measured for level, snapshot in chosen.items()}
    table = {task.name: {level: asdict(measured) for level, measured in returns.items()}}
    write_file(folder / "policies.safetensors", safetensors.numpy.save(tensors))
    write_file(folder / "returns.json", json.dumps(table, indent=1))
    return returns


def choose_levels(snapshots: Sequence[Snapshot]) -> dict[str, Snapshot]:
    """Level → snapshot, worst level first. The first snapshot must be the untrained policy; "expert" is always chosen."""
    low = snapshots[0].measured.mean
    best = max(snapshots, key=lambda snapshot: snapshot.measured.mean)
    span = best.measured.mean - low
    chosen = {}
    for level, (target, tolerance) in _LEVEL_TARGETS.items():
        offs = [abs((snapshot.measured.mean - low) / span - target) if span > 0 else np.inf for snapshot in snapshots]
        if min(offs) <= tolerance:
            chosen[level] = snapshots[int(np.argmin(offs))]
    return chosen | {"expert": best}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; None if there is none."""
    return max(folder.glob("checkpoint-*"), default=None)


def save_checkpoint(folder: Path, run: Run, model: Any, snapshots: Sequence[Snapshot]) -> None:
    """Writes the checkpoint of the sbx `model` and all `snapshots` so far, then removes older checkpoints.

    Raises:
        DiskSpaceError: the disk is full; older checkpoints stay.
    """
    returns = {str(snapshot.steps): snapshot.measured for snapshot in snapshots}
    progress = _Progress(run.task, run.seed, returns, run.algorithm, run.start)
    layers = {
        f"{snapshot.steps}/{name}": layer
        for snapshot in snapshots
        for name, layer in zip(LAYER_NAMES, snapshot.layers, strict=True)
    }
    target = folder / f"checkpoint-{snapshots[-1].steps:09d}"
    with disk_space_errors(target), scratch_folder(folder) as scratch:
        # not save_file, whose errors do not tell a full disk from others
        (scratch / "state.safetensors").write_bytes(safetensors.numpy.save(_state(model)))
        (scratch / "snapshots.safetensors").write_bytes(safetensors.numpy.save(layers))
        (scratch / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
        publish(scratch, target)
    for older in folder.glob("checkpoint-*"):
        if older != target:
            shutil.rmtree(older)


def read_snapshots(checkpoint: Path, run: Run) -> list[Snapshot]:
    """The snapshots of a checkpoint, oldest first.

    Raises:
        ConfigError: the checkpoint is of another run, or damaged.
    """
    progress = read_document(checkpoint / "progress.json", _Progress, ConfigError)
    held = Run(progress.task, progress.seed, progress.algorithm, progress.start)
    if held != run:
        raise ConfigError(f"{checkpoint.parent} holds a run of {held}; asked for was {run}")
    with _damage_named(checkpoint):
        tensors = _load(checkpoint / "snapshots.safetensors")
        return [
            Snapshot(int(steps), tuple(tensors[f"{steps}/{name}"] for name in LAYER_NAMES), measured)
            for steps, measured in progress.returns.items()
        ]


@contextlib.contextmanager
def _damage_named(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (PathError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{checkpoint} is damaged ({error}); remove it to go on from the checkpoint before") from error


def _load(file: Path) -> dict[str, NDArray[Any]]:
    with open_regular(file):
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load_file(file)
        return tensors


def load_state(model: Any, checkpoint: Path, steps: int) -> None:
    """Gives the sbx `model` the networks, optimizers, keys and replay buffer of a checkpoint made after `steps` steps."""
    import jax

    with _damage_named(checkpoint):
        tensors = _load(checkpoint / "state.safetensors")
    structure = jax.tree_util.tree_structure(learned(model))
    leaves = [jax.numpy.asarray(tensors[name]) for name in sorted(tensors) if name.startswith("learned/")]
    set_learned(model, jax.tree_util.tree_unflatten(structure, leaves))
    buffer = model.replay_buffer
    buffer.pos = len(tensors["buffer/rewards"])
    for name in _BUFFER_FIELDS:
        getattr(buffer, name)[: buffer.pos] = tensors[f"buffer/{name}"]
    model.num_timesteps = steps


def _state(model: Any) -> Mapping[str, NDArray[Any]]:
    import jax

    tensors = {f"learned/{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree_util.tree_leaves(learned(model)))}
    buffer = model.replay_buffer
    return tensors | {f"buffer/{name}": np.ascontiguousarray(getattr(buffer, name)[: buffer.pos]) for name in _BUFFER_FIELDS}
