"""Episode rows: what is known of one evaluated episode, and the files they are kept in, one JSON object a line.

    {"bank_hash": "…", "episode_return": 812.5, …, "task": "walker-run", "versions": {…}}

`evaluation` plays the episodes, `scores` makes scores of rows. A row that exists can be written, and then be read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tasks
from ..errors import DatasetError, InvalidValueError, M3DTError
from ..system.disk import open_regular, path_errors, write_file
from ..system.documents import checked_shape, read_document

MAX_LINE_BYTES = 64 << 10
"""The longest line that is written or read; a row takes some 400 bytes."""
_NUMBERS = {task.name: number for number, task in enumerate(tasks.TASKS)}
_OPTIONAL = {"settings", "score"}
"""Fields that rows of older releases lack; they are written only where they say something."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(one) for pair in value.items() for one in pair)


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) or (type(value) is int and abs(value) < 2**63)) and math.isfinite(value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task": (lambda v: isinstance(v, str), "a task name"),
    "seed": (lambda v: type(v) is int and 0 <= v < 2**32, "an integer in [0, 2**32)"),
    "episode_return": (_is_number, "a finite number"),
    "length": (lambda v: type(v) is int and 1 <= v < 2**63, "an integer >= 1"),
    "success": (lambda v: v is None or type(v) is bool, "true, false or null"),
    "policy": (lambda v: _is_text(v) and v != "", "a name of printable characters"),
    "bank_hash": (_is_text, "a string of printable characters"),
    "reward_version": (lambda v: v is None or _is_text(v), "a string of printable characters or null"),
    "stop_on_success": (lambda v: type(v) is bool, "true or false"),
    "versions": (_is_table, "an object of printable strings"),
    "settings": (_is_table, "an object of printable strings"),
    "score": (lambda v: v is None or isinstance(v, tasks.Linear) or v in ("success", "return"), "a score rule or null"),
}


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One evaluated episode.

    seed: of the environment's reset. episode_return: undiscounted, summed in float64. success: None if the task has none.
    bank_hash: content hash of the bank that acted; "" for other policies. reward_version: Meta-World's reward function;
    None for other domains. versions: package name → installed version. settings: how an agent acted ("experts", "rtg_mode",
    "precision"); empty for other policies, and in rows of older releases. score: how a task of one's own is scored, so that the
    row can be read where the task is not known; None: as the task of this name says.

    Raises:
        InvalidValueError: a value that no episode has; the message names the field.
        UnknownTaskError: no such task. ConfigError: a Meta-World episode without `success`.
    """

    task: str
    seed: int
    episode_return: float
    length: int
    success: bool | None
    policy: str
    bank_hash: str
    reward_version: str | None
    stop_on_success: bool
    versions: Mapping[str, str]
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score: tasks.ScoreRule | None = None

    def __post_init__(self) -> None:
        for field, (valid, description) in _CHECKS.items():
            value = getattr(self, field)
            if not valid(value):
                raise InvalidValueError(f"{field} must be {description}; got {value!r:.200}")
        if not math.isfinite(score := self.normalized_score):
            raise InvalidValueError(f"episode_return must give a finite score; {self.episode_return!r} gives {score}")

    @property
    def rule(self) -> tasks.ScoreRule:
        """How the episode is scored."""
        return tasks.get(self.task).score if self.score is None else self.score

    @property
    def normalized_score(self) -> float:
        """The episode's score, `TaskSpec.normalized_score`: from 0 to 100, or the return itself if that is the rule."""
        return tasks.score_of(self.rule, self.episode_return, self.success, self.task)

    @property
    def order(self) -> tuple[int, str, int]:
        """Where the row stands in a file: the 160 tasks in their published order, then others by name; then seeds."""
        return _NUMBERS.get(self.task, len(_NUMBERS)), self.task, self.seed


def write_rows(path: str | Path, rows: Iterable[EpisodeResult]) -> Path:
    """Writes the rows to `path`, one JSON object per line, all or none.

    Raises:
        InvalidValueError: a row longer than `MAX_LINE_BYTES`.
        PathError: `path` cannot be written. DiskSpaceError: no room; `path` is as before.
    """
    path = Path(path)
    content = b"".join(map(line_of, rows))
    with path_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    return path


def read_rows(path: str | Path) -> list[EpisodeResult]:
    """Reads a file that `write_rows` or an evaluation wrote, of this release or an older one.

    Raises:
        PathError: `path` cannot be read, or is no regular file.
        DatasetError: an unreadable line, missing or unknown fields, a wrong type or value; the message names the line.
    """
    return [row_of(line, f"{path}, line {number}") for number, line in enumerate(lines_of(Path(path)), 1)]


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file with their line ends; one that is too long is cut, so that no file decides how much memory is taken.

    Raises:
        PathError: `path` cannot be read, or is no regular file.
    """
    with path_errors(path), open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            yield line


def line_of(row: EpisodeResult) -> bytes:
    """The row as it stands in a file.

    Raises:
        InvalidValueError: it is longer than `MAX_LINE_BYTES`.
    """
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    tables = {"versions": dict(row.versions), "settings": dict(row.settings)}
    document = {**fields, **tables, "normalized_score": row.normalized_score}
    if isinstance(row.score, tasks.Linear):
        document["score"] = dataclasses.asdict(row.score)
    elif row.score is None:
        del document["score"]
    if not row.settings:
        del document["settings"]
    line = json.dumps(document, sort_keys=True, allow_nan=False).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise InvalidValueError(f"{row.task}, seed {row.seed}: a row takes at most {MAX_LINE_BYTES} bytes; got {len(line)}")
    return line


def row_of(line: bytes, where: str) -> EpisodeResult:
    """The row in a line of a file. where: what errors call the line.

    Raises:
        DatasetError: it is none.
    """
    values: dict[str, Any] = read_document(line, dict[str, Any], DatasetError, name=where, max_bytes=MAX_LINE_BYTES)
    required = {*_CHECKS, "normalized_score"}
    if missing := sorted(required - set(values) - _OPTIONAL):
        raise DatasetError(f"{where}: missing {', '.join(missing)}")
    if unknown := sorted(set(values) - required):
        raise DatasetError(f"{where}: unknown field {', '.join(map(repr, unknown[:5]))}")
    stored = values.pop("normalized_score")
    if "score" in values:
        values["score"] = checked_shape(values["score"], tasks.ScoreRule, DatasetError, name=f"{where}: score")
    try:
        row = EpisodeResult(**values)
    except M3DTError as error:
        raise DatasetError(f"{where}: {error}") from error
    if not _is_number(stored) or not math.isclose(row.normalized_score, stored, rel_tol=1e-9, abs_tol=1e-9):
        raise DatasetError(
            f"{where}: normalized_score is {stored!r:.200}, but the row's return and success give {row.normalized_score!r}"
        )
    return row
