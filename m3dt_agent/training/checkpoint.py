"""Checkpoints, from which a killed run continues: folders that are either whole or not there.

    <bank>/resume/
      .lock                          held by the process that trains
      <run>-<step>/                  run: backbone, router, or experts-<first>-<last>
        weights.safetensors          what the run trains
        optimizer.safetensors        AdamW's two moments of each of them
        hooks.safetensors            the tensors of the run's hooks, if it has any
        average.safetensors          the running average of the weights, if the run keeps one
        state.json                   step, config, threads, what it builds on, sha256 of the other files and of itself

A checkpoint is built in a hidden scratch folder, flushed and renamed; only then are older ones removed, except the one before
it. No state of a random generator is kept, since randomness is derived from (seed, stage, expert, step).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bank.manifest import MOST_THREADS
from ..bank.tensor_files import FileRecord, read_tensors, verify, write_tensors
from ..config import Stage
from ..errors import BankError, ConfigError
from ..system.disk import own_path, path_errors, publish, scratch_folder
from ..system.documents import checked_shape, read_document
from ..system.platforms import flush, locked

KEPT = 2
"""Checkpoints of a run on disk: the newest, and the one before it in case the newest is damaged."""
_ROWS = 3
_FILES = ("weights.safetensors", "optimizer.safetensors", "hooks.safetensors", "average.safetensors")


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything about a run except its tensors.

    config: the run's TrainConfig as a dict. built_on: hashes of what must be the same to continue (data, groups, frozen
    weights). conflicts: all measurements of gradient conflict so far. sums: (3, K), of loss, gradient norm and share of experts
    kept, over the `summed` steps since the last log row.

    Raises:
        ConfigError: numbers that no run has.
    """

    stage: Stage
    run: str
    step: int
    seconds: float
    threads: int
    config: dict[str, Any]
    built_on: dict[str, str]
    conflicts: list[float]
    sums: list[list[float]]
    summed: int

    def __post_init__(self) -> None:
        if min(self.step, self.summed, self.seconds) < 0:
            raise ConfigError("step, summed and seconds must not be negative")
        if not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError(f"threads must be in 1 … {MOST_THREADS}; got {self.threads}")
        if len(self.sums) > _ROWS or len({len(row) for row in self.sums}) > 1:
            raise ConfigError(f"sums must be up to {_ROWS} rows of one length")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder whose files were verified when it was found."""

    path: Path
    state: RunState
    files: dict[str, FileRecord]

    def read(self, name: str) -> dict[str, Tensor]:
        """Tensors of "weights", "optimizer", "hooks" or "average".

        Raises:
            BankError: it was damaged after it was found.
        """
        return read_tensors(self.path / f"{name}.safetensors", self.files[f"{name}.safetensors"])


@contextlib.contextmanager
def training_lock(bank: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the bank for training; a kill releases it. shared: others that share may train it too, in folders of their own.

    Raises:
        BankError: another process trains it. PathError: nothing can be written there, or resume/ leads out of the bank.
    """
    with contextlib.ExitStack() as stack:
        with path_errors(bank):
            lock = own_path(bank, "resume/.lock")
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(locked(lock, shared=shared, wait=False, create=True))
        if not held:
            raise BankError(f"another process is training bank {bank}; wait for it or stop it")
        yield


def write_checkpoint(bank: Path, state: RunState, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes `<run>-<step>/`, then removes the run's older checkpoints.

    Args:
        tensors: "weights", "optimizer", and "hooks" and "average" where there are any.

    Raises:
        DiskSpaceError: no room. PathError: nothing can be written there. In either case the older checkpoints are as before.
    """
    target = own_path(bank, f"resume/{state.run}-{state.step}")
    with path_errors(target), scratch_folder(target.parent) as scratch:
        files = {f"{name}.safetensors": write_tensors(scratch / f"{name}.safetensors", part) for name, part in tensors.items()}
        (scratch / "state.json").write_text(_seal({"state": dataclasses.asdict(state), "files": _plain(files)}))
        flush(scratch)
        shutil.rmtree(target, ignore_errors=True)  # it exists only if it was damaged, and the run continued from an older one
        publish(scratch, target)
    for _, older in _folders(bank, state.run)[KEPT:]:
        shutil.rmtree(older, ignore_errors=True)


def newest_checkpoint(bank: Path, run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of `run`, or None, and what is wrong with newer ones.

    Raises:
        BankError: there are checkpoints and every one is damaged.
    """
    problems: list[str] = []
    folders = _folders(bank, run)
    for _, folder in folders:
        try:
            return _open(folder), problems
        except BankError as error:
            problems.append(str(error))
    if problems:
        raise BankError(f"every checkpoint of run {run!r} is damaged; remove them to start again: " + "; ".join(problems))
    return None, problems


def remove_checkpoints(bank: Path, run: str) -> None:
    """Removes all checkpoints of `run`."""
    for _, folder in _folders(bank, run):
        shutil.rmtree(folder, ignore_errors=True)


def started_runs(bank: Path, stage: Stage) -> list[str]:
    """The runs of `stage` that have a checkpoint, by name."""
    return sorted({run for run, _ in map(_parse, (bank / "resume").glob(f"{stage}*-*")) if run})


def _folders(bank: Path, run: str) -> list[tuple[int, Path]]:
    """Steps and folders of a run, newest first."""
    parsed = [(folder, *_parse(folder)) for folder in (bank / "resume").glob(f"{run}-*")]
    return sorted(((step, folder) for folder, name, step in parsed if name == run), reverse=True)


def _parse(folder: Path) -> tuple[str, int]:
    run, _, step = folder.name.rpartition("-")
    return (run, int(step)) if re.fullmatch("[0-9]{1,18}", step) and folder.is_dir() else ("", -1)


def _open(folder: Path) -> Checkpoint:
    content = _unseal(folder / "state.json")
    for name, record in content.files.items():
        if name not in _FILES:
            raise BankError(f"{folder / 'state.json'} is damaged: it lists {name!r:.80}, which is not a file of a checkpoint")
        verify(folder / name, record)
    return Checkpoint(folder, content.state, content.files)


def _plain(files: Mapping[str, FileRecord]) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(record) for name, record in files.items()}


def _seal(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content})


@dataclass(frozen=True, slots=True)
class _Content:
    """What `state.json` seals with its hash."""

    state: RunState
    files: dict[str, FileRecord]


def _unseal(path: Path) -> _Content:
    sealed = read_document(path, dict[str, Any], BankError)
    content = sealed.get("content")
    if hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() != sealed.get("sha256"):
        raise BankError(f"{path} is damaged: its sha256 is another than it says")
    found: _Content = checked_shape(content, _Content, BankError, name=path)
    return found
