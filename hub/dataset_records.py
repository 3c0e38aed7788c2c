"""What `datasets.json` says about each dataset of a collection, and what is required of a dataset.

Minari's `recover_environment` runs whatever the `env_spec` of a dataset names. Because a dataset may be opened in anybody's
Minari, one that names anything but the environment of its own task is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from m3dt_agent import tasks as task_table
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.data.episodes import dataset_id, read_episodes, read_metadata
from m3dt_agent.data.validation import METADATA_FILE, STEPS_FILE, validate_dataset
from m3dt_agent.errors import DatasetError, M3DTError
from m3dt_agent.hub.cards import DatasetRow
from m3dt_agent.hub.snapshots import sha256_file
from m3dt_agent.system.documents import checked_shape, read_document
from m3dt_agent.system.text import visible
from m3dt_agent.tasks import TaskSpec

FORMAT_VERSION = 1
DATASET_FILES = (METADATA_FILE.as_posix(), STEPS_FILE.as_posix())
"""The files of a dataset, relative to its folder."""
_OUR_CODE = "m3dt_agent."


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """The entry of one dataset in `datasets.json`. mean_score: normalized; None if success is unknown. files: its two files."""

    task: str
    source: str
    episodes: int
    steps: int
    mean_return: float
    mean_score: float | None
    files: Mapping[str, FileRecord]

    @property
    def id(self) -> str:
        """Minari's id."""
        return dataset_id(task_table.get(self.task), self.source)

    @property
    def row(self) -> DatasetRow:
        """Its line in the dataset card."""
        steps = self.files[DATASET_FILES[1]]
        values = {
            name: getattr(self, name) for name in ("id", "task", "source", "episodes", "steps", "mean_return", "mean_score")
        }
        return DatasetRow(**values, bytes=steps.bytes, sha256=steps.sha256)


Records = dict[str, DatasetRecord]


def describe(path: Path, task: TaskSpec) -> DatasetRecord:
    """Validates a dataset and returns its record.

    Raises:
        DatasetError: the dataset is invalid; the message says why.
    """
    require_sound(path, task)
    returns, scores, steps = [], [], 0
    for episode in read_episodes(path):
        returns.append(episode.episode_return)
        steps += episode.length
        if not task.has_success or episode.success is not None:
            success = None if episode.success is None else bool(episode.success.any())
            scores.append(task.normalized_score(episode.episode_return, success))
    return DatasetRecord(
        task=task.name,
        source=path.name.removesuffix("-v0"),
        episodes=len(returns),
        steps=steps,
        mean_return=float(np.mean(returns)),
        mean_score=float(np.mean(scores)) if scores else None,
        files={name: FileRecord(sha256_file(path / name), (path / name).stat().st_size) for name in DATASET_FILES},
    )


def require_sound(path: Path, task: TaskSpec) -> None:
    """Checks that the dataset at `path` can be trained on and shared.

    Raises:
        DatasetError: the dataset is invalid; the message says why.
    """
    problems = validate_dataset(path, task)
    if not problems:
        problems = foreign_code(read_metadata(path), task)
    if problems:
        raise DatasetError(f"dataset of task {task.name!r} at {path}: {problems[0]}")


def foreign_code(metadata: Mapping[str, Any], task: TaskSpec) -> list[str]:
    """Says where metadata would make Minari's `recover_environment` run more than our environment of `task`."""
    problems = []
    for key in ("env_spec", "eval_env_spec"):
        if (text := metadata.get(key)) is None:
            continue
        if not _is_own_environment(text, task):
            shown = visible(repr(str(text)), longest=80)
            problems.append(f"its {key} names something other than {task.env_id}, and Minari would run it: {shown}")
    return problems


def _is_own_environment(text: object, task: TaskSpec) -> bool:
    try:
        spec = read_document(text, dict[str, Any], DatasetError) if isinstance(text, str) else {}
    except DatasetError:
        return False
    runs = [spec.get("entry_point"), spec.get("vector_entry_point")]
    if not task_table.is_builtin(task):
        return False  # its own environment takes other actions than the dataset holds
    ours = json.loads(gym.spec(task.env_id).to_json())
    same = spec.get("id") == task.env_id and spec.get("kwargs", {}) == ours["kwargs"] and not spec.get("additional_wrappers")
    return same and all(run is None or str(run).startswith(_OUR_CODE) for run in runs)


def to_json(records: Records) -> str:
    """The text of `datasets.json`."""
    content = {name: dataclasses.asdict(record) for name, record in records.items()}
    return json.dumps({"format": "m3dt-datasets", "format_version": FORMAT_VERSION, "datasets": content}, indent=1)


def from_json(text: str | bytes, where: str) -> Records:
    """Reads and checks the records in `text`. where: the name of the file in error messages.

    Raises:
        DatasetError: not a `datasets.json`, a newer format, or invalid content.
    """
    values = read_document(text, dict[str, Any], DatasetError, name=where)
    if values.get("format") != "m3dt-datasets":
        raise DatasetError(f"{where} is damaged or foreign: its format is not m3dt-datasets")
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise DatasetError(
            f"{where} is damaged or foreign: format version {version!r}; this version of m3dt-agent reads {FORMAT_VERSION}"
        )
    records: Records = checked_shape(values.get("datasets"), Records, DatasetError, name=where)
    for name, record in records.items():
        _require_own_name(name, record, where)
    return records


def _require_own_name(name: str, record: DatasetRecord, where: str) -> None:
    try:
        fine = record.id == name and set(record.files) == set(DATASET_FILES)
    except M3DTError as error:  # an unknown task, a source that is no name
        raise DatasetError(f"{where} is damaged or foreign: {error}") from error
    if not fine:
        raise DatasetError(
            f"{where} is damaged or foreign: it lists {visible(repr(name), longest=200)} with "
            f"{visible(', '.join(record.files), longest=200)}, which are not a dataset's id and files"
        )
