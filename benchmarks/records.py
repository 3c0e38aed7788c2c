"""What a benchmark run leaves on disk: a folder of cells, each a trained model and its evaluated episodes.

    <run>/<cell id>/
      cell.json            format, the cell (what to train), the facts (what it took; null until training is over)
      rows-0.75.jsonl      episodes after 75% of the training windows, one `EpisodeResult` per line; not of every method
      rows-1.00.jsonl      episodes of the final model; only these are compared
      expert_weights.json  task → mean router weight of each expert, if the final model has a router
      work/                checkpoints and weights; not part of the record
    <run>/shared/          banks that several cells use (`methods.one_bank`); not part of the record

A cell's id is a hash of what to train, so the runs of two machines merge when their folders are put together, and nothing is
done twice. Results from elsewhere can be written in this format; `python -m benchmarks validate FOLDER` checks them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m3dt_agent import tasks as task_table
from m3dt_agent.errors import DatasetError, UnknownTaskError
from m3dt_agent.scores import EpisodeResult, read_rows, write_rows
from m3dt_agent.system.disk import write_file
from m3dt_agent.system.documents import checked_shape, read_document

FORMAT_VERSION = 1
_MOST_BYTES = 64 << 20
"""The longest `cell.json` that is read: a loss curve of a million steps. Those of the published runs have 0.05 MB."""
FINAL = "1.00"
"""The fraction of its training after which a cell is compared with others: all of it."""
TaskIdUse = Literal["none", "training", "acting"]
"""What a method uses a task's identity for."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model to train and evaluate.

    experiment: the one it was planned for. method: a name from `methods`. task_set: a published set (mt10 …) or the name of a
    sampled one, drawn with task_set_seed. scale: a name from `experiments.scales`. condition: of the data, see `runs.data`.
    settings: every number that model and training depend on.
    """

    experiment: str
    method: str
    task_set: str
    task_set_seed: int
    training_seed: int
    scale: str
    condition: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits: a hash of everything in the cell except the experiment."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "experiment"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Facts:
    """What it took to train and evaluate a cell.

    parameters, active_parameters: all of the model's, and those that one action uses. windows: seen in training. training_flop,
    action_flop: FLOP of matrix products. data: see `runs.data.describe_data`. curve: (windows seen, training loss) at every
    logged step. conflict: kind of module → gradient conflict between the tasks (see `runs.gradient_conflict`); empty if the
    method has several models.
    """

    parameters: int
    active_parameters: int
    windows: int
    training_flop: float
    action_flop: float
    task_id: TaskIdUse
    data: Mapping[str, Any]
    curve: Sequence[tuple[int, float]]
    seconds: float
    threads: int
    precision: str
    machine: str
    versions: Mapping[str, str]
    conflict: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell of a run. facts: None until training is over. episodes: fraction of the training → episodes after it."""

    cell: Cell
    facts: Facts | None
    episodes: Mapping[str, Sequence[EpisodeResult]]

    @property
    def final(self) -> Sequence[EpisodeResult]:
        """The episodes of the final model; empty until they are evaluated."""
        return self.episodes.get(FINAL, ())

    @property
    def finished(self) -> bool:
        """Whether the cell is trained and its final model evaluated."""
        return self.facts is not None and bool(self.final)


def write_cell(run: Path, cell: Cell, facts: Facts | None) -> Path:
    """Writes `cell.json` and returns the cell's folder."""
    folder = run / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "format": "m3dt-benchmark-cell",
        "format_version": FORMAT_VERSION,
        "cell": dataclasses.asdict(cell),
        "facts": None if facts is None else dataclasses.asdict(facts),
    }
    write_file(folder / "cell.json", json.dumps(document, indent=1, allow_nan=False).encode())
    return folder


def write_cell_episodes(run: Path, cell: Cell, fraction: str, episodes: Sequence[EpisodeResult]) -> Path:
    """Writes the episodes of a cell after a fraction of its training, and returns the file."""
    return write_rows(run / cell.id / f"rows-{fraction}.jsonl", episodes)


def read_run(*runs: Path) -> list[CellResult]:
    """Reads every cell of one or more run folders. Each cell comes once, in the order of the ids.

    Raises:
        DatasetError: there are no cells, or one is damaged; the message names it.
    """
    found: dict[str, CellResult] = {}
    for run in runs:
        for file in sorted(run.glob("*/cell.json")):
            result = read_cell(file.parent)
            known = found.get(result.cell.id)
            if known is None or len(result.episodes) > len(known.episodes):
                found[result.cell.id] = result
    if not found:
        raise DatasetError(f"no benchmark cells under {', '.join(map(str, runs))}")
    return [found[key] for key in sorted(found)]


def read_cell(folder: Path) -> CellResult:
    """Reads and checks the cell in `folder`.

    Raises:
        DatasetError: it is damaged or not in this format; the message says what is wrong.
    """
    file = folder / "cell.json"
    document = read_document(file, dict[str, Any], DatasetError, max_bytes=_MOST_BYTES)
    found = (document.get("format"), document.get("format_version"))
    if found != ("m3dt-benchmark-cell", FORMAT_VERSION):
        raise DatasetError(
            f"{file} is damaged or foreign: its format is {found[0]!r:.80} version {found[1]!r:.80}; "
            f"this package reads 'm3dt-benchmark-cell' version {FORMAT_VERSION}"
        )
    cell: Cell = checked_shape(document.get("cell"), Cell, DatasetError, name=file)
    facts: Facts | None = checked_shape(document.get("facts"), Facts | None, DatasetError, name=file)
    try:
        for name in cell.tasks:
            task_table.get(name)
    except UnknownTaskError as error:
        raise DatasetError(f"{file} is damaged or foreign: {error}") from error
    episodes = {path.stem.removeprefix("rows-"): read_rows(path) for path in sorted(folder.glob("rows-*.jsonl"))}
    if problems := cell_problems(cell, episodes):
        raise DatasetError(f"{folder}: {problems[0]}")
    return CellResult(cell, facts, episodes)


def cell_problems(cell: Cell, episodes: Mapping[str, Sequence[EpisodeResult]]) -> list[str]:
    """What is wrong with the episodes of a cell: tasks it does not have, an episode twice, or tasks with different seeds."""
    problems = []
    for fraction, found in episodes.items():
        where = f"rows-{fraction}.jsonl"
        seeds: dict[str, list[int]] = {name: [] for name in cell.tasks}
        for row in found:
            if row.task not in seeds:
                problems.append(f"{where} has an episode of {row.task}, which is not a task of the cell")
                break
            seeds[row.task].append(row.seed)
        if any(len(set(drawn)) != len(drawn) for drawn in seeds.values()):
            problems.append(f"{where} has an episode twice")
        if len({tuple(sorted(drawn)) for drawn in seeds.values()}) > 1:
            problems.append(f"{where}: not every task has the same episodes")
    return problems
