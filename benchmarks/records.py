"""What a benchmark run leaves: a folder of cells, each a trained model and its evaluated episodes.

    <run>/<cell id>/
      cell.json            format, the cell (what was asked for), the facts (what it took; null until training is over)
      rows-0.75.jsonl      episodes after 75% of the training windows, one `EpisodeResult` a line
      rows-1.00.jsonl      episodes of the final model; only these are compared
      work/                checkpoints and weights; not part of the record

A cell's id is a hash of what was asked for, so two machines' runs merge by putting their folders together, and nothing is done
twice. Anybody's results can be brought in this form; `python -m benchmarks validate FOLDER` says what is wrong with them.
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
from m3dt_agent.config import from_dict
from m3dt_agent.disk import write_file
from m3dt_agent.errors import ConfigError, DatasetError, M3DTError
from m3dt_agent.scores import EpisodeResult, read_rows, write_rows

FORMAT_VERSION = 1
FINAL = "1.00"
"""The fraction of its training windows after which a cell is compared with others."""
TaskIdUse = Literal["none", "training", "acting"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One model to train and evaluate.

    experiment: the table or figure it belongs to. method: by name (see `methods`). task_set: a published set (mt10 …), or the
    name of a sampled one; task_set_seed and training_seed are independent. scale: as `scales` has it. condition: of the
    data, as `data` has it. settings: every number that model and training depend on.
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
        """Twelve hexadecimal digits that stand for everything in the cell, the experiment apart."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "experiment"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a cell took.

    parameters, active_parameters: of the model, and those that one action needs. windows: seen in training. training_flop,
    action_flop: counted matrix products. task_id: what the method uses the task's identity for. data: fingerprint, and per task
    the counts of a histogram of normalized episode scores (ten bins, 0 to 100). curve: (windows seen, training loss). conflict:
    of the tasks' gradients, per module of the trained model (see `conflict`); empty where it cannot be measured.
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
    """A cell of a run. facts: None until training is over. rows: fraction of the training → episodes."""

    cell: Cell
    facts: Facts | None
    rows: Mapping[str, Sequence[EpisodeResult]]

    @property
    def final(self) -> Sequence[EpisodeResult]:
        """The episodes of the final model; empty until they are evaluated."""
        return self.rows.get(FINAL, ())


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


def write_cell_rows(run: Path, cell: Cell, fraction: str, rows: Sequence[EpisodeResult]) -> Path:
    """Writes the episodes of a cell after a fraction of its training."""
    return write_rows(run / cell.id / f"rows-{fraction}.jsonl", rows)


def read_run(*runs: Path) -> list[CellResult]:
    """Every cell of one or more run folders, each once, in the order of their ids.

    Raises:
        DatasetError: a folder without cells, or a cell that is damaged; the message names it.
    """
    found: dict[str, CellResult] = {}
    for run in runs:
        for file in sorted(run.glob("*/cell.json")):
            result = read_cell(file.parent)
            known = found.get(result.cell.id)
            if known is None or len(result.rows) > len(known.rows):
                found[result.cell.id] = result
    if not found:
        raise DatasetError(f"no benchmark cells under {', '.join(map(str, runs))}")
    return [found[key] for key in sorted(found)]


def read_cell(folder: Path) -> CellResult:
    """The cell in `folder`, validated.

    Raises:
        DatasetError: what is wrong with it.
    """
    file = folder / "cell.json"
    try:
        document = json.loads(file.read_text())
        if (document["format"], document["format_version"]) != ("m3dt-benchmark-cell", FORMAT_VERSION):
            raise ConfigError(f"format {document['format']!r} {document['format_version']!r}; {FORMAT_VERSION} is read")
        values = document["cell"]
        cell = from_dict(Cell, {**values, "tasks": tuple(task_table.get(name).name for name in values["tasks"])})
        facts = None if document["facts"] is None else from_dict(Facts, document["facts"])
    except (OSError, ValueError, KeyError, TypeError, M3DTError) as error:
        raise DatasetError(f"{file} is damaged or foreign: {error}") from error
    rows = {path.stem.removeprefix("rows-"): read_rows(path) for path in sorted(folder.glob("rows-*.jsonl"))}
    if problems := cell_problems(cell, rows):
        raise DatasetError(f"{folder}: {problems[0]}")
    return CellResult(cell, facts, rows)


def cell_problems(cell: Cell, rows: Mapping[str, Sequence[EpisodeResult]]) -> list[str]:
    """What is wrong with the episodes of a cell: other tasks, an episode twice, or tasks of different quotas."""
    problems = []
    for fraction, episodes in rows.items():
        where = f"rows-{fraction}.jsonl"
        seeds: dict[str, list[int]] = {name: [] for name in cell.tasks}
        for row in episodes:
            if row.task not in seeds:
                problems.append(f"{where} has an episode of {row.task}, which is not a task of the cell")
                break
            seeds[row.task].append(row.seed)
        if any(len(set(drawn)) != len(drawn) for drawn in seeds.values()):
            problems.append(f"{where} has an episode twice")
        if len({tuple(sorted(drawn)) for drawn in seeds.values()}) > 1:
            problems.append(f"{where}: not every task has the same episodes")
    return problems
