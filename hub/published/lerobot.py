"""LeRobot datasets, versions 2.1 and 3.0: parquet files of frames, read with pyarrow (extra `[lerobot]`).

    meta/info.json                                    version, features with their shapes, counts
    data/chunk-000/episode_000000.parquet, …          2.1: one episode in each
    data/chunk-000/file-000.parquet, …                3.0: many episodes in each

A row is a frame: `observation.state` and `action` at one moment, `episode_index`, and where there are any `next.reward`,
`next.done` and `next.success`. There is no observation after the last action, so the last one stands there twice. Without
rewards, all are 0, and the agent can only imitate. Images and videos are left out.

The parquet files' own records say how much a read would take; what is more than `_MOST_BYTES` at once is refused.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3dt_agent.data.limits import MOST_EPISODES
from m3dt_agent.errors import DatasetError, MissingDependencyError, PathError
from m3dt_agent.hub.published.episodes import (
    Listing,
    Numbers,
    PublishedEpisode,
    PublishedTask,
    Wanted,
    endings,
    make_episode,
    natural_order,
    only_task,
)
from m3dt_agent.system.disk import open_regular
from m3dt_agent.system.documents import checked_shape, read_document
from m3dt_agent.tasks import LARGEST_WIDTH, LONGEST_EPISODE, TaskSpec
from m3dt_agent.tasks.spaces import from_env

log = logging.getLogger(__name__)

INFO_FILE = Path("meta", "info.json")
VERSIONS = ("v2.1", "v3.0")
STATE, ACTION, EPISODE = "observation.state", "action", "episode_index"
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
_MOST_BYTES = 256_000_000
_NUMBERS = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class _Feature:
    """A column: its numbers per frame."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers of one frame."""
        return int(np.prod(self.shape, dtype=np.int64))


def is_lerobot(path: Path) -> bool:
    """Whether there is a LeRobot dataset at `path`."""
    return (path / INFO_FILE).is_file()


def find_lerobot(path: Path, wanted: Wanted) -> Listing:
    """Finds the LeRobot dataset in the folder `path`, as data of the one task that is wanted.

    Raises:
        ConfigError: not exactly one task is wanted.
    """
    task = only_task(wanted, "a LeRobot dataset")
    return Listing({task.name: functools.partial(_open, task, path)})


def _open(task: TaskSpec, path: Path) -> PublishedTask:
    info, features = _read_info(path)
    states = task.observation or (STATE,)
    for names, width, what in ((states, task.obs_dim, "obs_dim"), ((ACTION,), task.act_dim, "act_dim")):
        found = sum(_feature(features, name, path).width for name in names)
        if found != width:
            raise DatasetError(
                f"{path} cannot be imported for task {task.name!r}: {' + '.join(names)} has {found} numbers; {what} is {width}"
            )
    _say_what_is_left_out(path, features, states)
    if task.has_success and SUCCESS not in features:
        raise DatasetError(f"{path} cannot be imported: task {task.name!r} has success, and there is no {SUCCESS}")
    files = _parquet_files(path)
    read = functools.partial(_read, task, path, files, features)
    count = info.get("total_episodes")
    known = count if type(count) is int and 0 < count <= MOST_EPISODES else None
    metadata: dict[str, str | int] = {"m3dt_final_observation": "repeated"}
    if REWARD not in features:
        metadata["m3dt_rewards"] = "none"
    return PublishedTask(task, path.name[:200], (path / INFO_FILE, *files), read, known, metadata)


def spec_of_lerobot(path: Path, **given: Any) -> TaskSpec:
    """The spec of a task whose data are the LeRobot dataset at `path`: widths and length are read from it.

    given: fields of `TaskSpec`; name and score are needed. action_low, action_high: if not given, the smallest and largest
    action of each entry; return_scale: the largest return, in magnitude.

    Raises:
        DatasetError: there is no dataset, or it cannot be read. ConfigError: what `TaskSpec` refuses.
    """
    _, features = _read_info(path)
    states = tuple(given.get("observation", ())) or (STATE,)
    act_dim, longest, largest = _feature(features, ACTION, path).width, 0, 0.0
    low, high = np.full(act_dim, np.inf), np.full(act_dim, -np.inf)
    for _, columns in _episodes(path, _parquet_files(path), features, (ACTION, *_there(features, REWARD))):
        low, high = np.minimum(low, columns[ACTION].min(0)), np.maximum(high, columns[ACTION].max(0))
        longest = max(longest, len(columns[ACTION]))
        largest = max(largest, abs(float(columns[REWARD].sum())) if REWARD in columns else 0.0)
    if longest == 0:
        raise DatasetError(f"{path} holds no frames")
    fixed = np.where(low < high, high, low + 1.0)  # an entry that never moves still needs two bounds
    bounds = (
        {} if given.get("action_low") is not None else {"action_low": tuple(low.tolist()), "action_high": tuple(fixed.tolist())}
    )
    read: dict[str, Any] = {
        "domain": "own",
        "obs_dim": sum(_feature(features, name, path).width for name in states),
        "act_dim": act_dim,
        "max_episode_steps": longest,
        "return_scale": largest or 1.0,
        **bounds,
    }
    return TaskSpec(**read | {key: value for key, value in given.items() if value is not None})


def _read_info(path: Path) -> tuple[dict[str, Any], dict[str, _Feature]]:
    info: dict[str, Any] = read_document(path / INFO_FILE, dict[str, Any], DatasetError)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: LeRobot's version is {version!r:.40}; {' and '.join(VERSIONS)} are read, and "
            "LeRobot's own scripts convert others"
        )
    listed = checked_shape(info.get("features"), dict[str, dict[str, Any]], DatasetError, name=f"{path / INFO_FILE}, features")
    features = {}
    for name, values in listed.items():
        dtype, shape = values.get("dtype"), values.get("shape")
        if dtype not in _NUMBERS:
            continue
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n <= LARGEST_WIDTH for n in shape):
            raise DatasetError(f"{path}: feature {name!r:.80} has shape {shape!r:.80}")
        features[name] = _Feature(dtype, tuple(shape))
    return info, features


def _feature(features: Mapping[str, _Feature], name: str, path: Path) -> _Feature:
    if name not in features:
        raise DatasetError(f"{path} has no feature {name!r} of numbers; it has {', '.join(sorted(features))}")
    return features[name]


def _say_what_is_left_out(path: Path, features: Mapping[str, _Feature], states: Sequence[str]) -> None:
    left = sorted(name for name in features if name.startswith("observation.") and name not in states)
    log.info("%s: images and videos are left out%s", path, f", and so are {', '.join(left)}" if left else "")
    if REWARD not in features:
        log.warning("%s has no %s: all rewards are 0, and the agent can only imitate", path, REWARD)


def _parquet_files(path: Path) -> tuple[Path, ...]:
    files = sorted(path.glob("data/chunk-*/*.parquet"), key=lambda file: [natural_order(part) for part in (file.parent, file)])
    if not files:
        raise DatasetError(f"{path} has no data/chunk-*/*.parquet")
    return tuple(files)


def _there(features: Mapping[str, _Feature], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in features)


def _read(task: TaskSpec, path: Path, files: Sequence[Path], features: Mapping[str, _Feature]) -> Iterator[PublishedEpisode]:
    states = task.observation or (STATE,)
    names = (*states, ACTION, *_there(features, REWARD, DONE, *([SUCCESS] if task.has_success else [])))
    for index, columns in _episodes(path, files, features, names):
        where, length = f"{path}, episode {index}", len(columns[ACTION])
        seen = np.concatenate([columns[name] for name in states], axis=1)
        done = columns[DONE][:, 0].astype(bool) if DONE in columns else np.zeros(length, bool)
        arrays: dict[str, Numbers] = {
            "observations": np.concatenate([seen, seen[-1:]]),
            "actions": from_env(task, columns[ACTION]),
            "rewards": columns[REWARD][:, 0] if REWARD in columns else np.zeros(length),
            **endings(where, task, done, length),
        }
        if task.has_success:
            arrays["success"] = np.logical_or.accumulate(columns[SUCCESS][:, 0].astype(bool))
        yield make_episode(where, task, arrays)


def _episodes(
    path: Path, files: Sequence[Path], features: Mapping[str, _Feature], names: Sequence[str]
) -> Iterator[tuple[int, dict[str, Numbers]]]:
    """(index, columns) of one episode after the other; a column is (L, width) float64."""
    pending: dict[str, list[Numbers]] = {name: [] for name in names}
    current = 0
    for piece in _pieces(path, files, features, (EPISODE, *names)):
        numbers = piece.pop(EPISODE)[:, 0].astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for begin, end in itertools.pairwise(cuts):
            if numbers[begin] != current:
                if numbers[begin] != current + 1 or not pending[ACTION]:
                    raise DatasetError(f"{path}: episode {numbers[begin]} follows episode {current}; they must be 0, 1, 2, …")
                yield current, {name: np.concatenate(parts) for name, parts in pending.items()}
                current, pending = current + 1, {name: [] for name in names}
            for name in names:
                pending[name].append(piece[name][begin:end])
            if sum(map(len, pending[ACTION])) > LONGEST_EPISODE or current >= MOST_EPISODES:
                raise DatasetError(f"{path}: episode {current} is longer than {LONGEST_EPISODE:,} frames, or one too many")
    if pending[ACTION]:
        yield current, {name: np.concatenate(parts) for name, parts in pending.items()}


def _pieces(
    path: Path, files: Sequence[Path], features: Mapping[str, _Feature], names: Sequence[str]
) -> Iterator[dict[str, Numbers]]:
    """The columns of one row group after the other."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow is not installed: pip install 'm3dt-agent[lerobot]'") from error
    for file in files:
        try:
            with open_regular(file) as opened, parquet.ParquetFile(opened) as table:
                for group in range(table.num_row_groups):
                    _require_small(file, table.metadata.row_group(group), names)
                    read = table.read_row_group(group, columns=list(names))
                    yield {name: _numbers(file, read, name, features) for name in names}
        except (PathError, arrow.ArrowException, OSError, KeyError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{file} ({_size(file)}) is not a parquet file, or is damaged: {error}") from error


def _size(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes" if file.is_file() else "no file"


def _require_small(file: Path, group: Any, names: Sequence[str]) -> None:
    wanted = [group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.split(".list")[0] in names]
    size = sum(column.total_uncompressed_size for column in wanted)
    if size > _MOST_BYTES or group.num_rows * len(names) * 8 > _MOST_BYTES:
        raise DatasetError(
            f"{file}: a row group of {group.num_rows:,} frames takes {size:,} bytes; at most {_MOST_BYTES:,} are read at once"
        )


def _numbers(file: Path, table: Any, name: str, features: Mapping[str, _Feature]) -> Numbers:
    """A column as (frames, width) float64."""
    if name not in table.column_names:
        raise DatasetError(f"{file} has no column {name!r}; it has {', '.join(table.column_names)[:200]}")
    column, rows = table.column(name).combine_chunks(), table.num_rows
    if column.null_count:
        raise DatasetError(f"{file}: {name} has {column.null_count} empty entries")
    width = 1 if name == EPISODE else features[name].width
    while hasattr(column, "flatten") and hasattr(column.type, "value_type"):
        column = column.flatten()
    if len(column) != rows * width or column.null_count:
        raise DatasetError(f"{file}: {name} has {len(column)} numbers in {rows} frames; meta/info.json says {width} in each")
    values: Numbers = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{file}: {name} is {column.type}, not numbers")
    return values.astype(np.float64).reshape(rows, width)
