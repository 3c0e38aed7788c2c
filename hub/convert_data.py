"""Published datasets into ours: one Minari dataset per task, streamed, checked, in bounded memory.

    published folder ─ finder ─▶ PublishedTask ─ read() ─▶ episodes ─ write_dataset ─▶ <root>/m3dt/<task>/<source>-v0

Formats: `mt160`, `tdmpc2`, `prompt-dt`, `minari`, `lerobot` (published/formats.py). A dataset appears whole or not at
all and remembers what it was made from, so that a second call keeps what a first one finished. Nothing that is read is ever
executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from m3dt_agent.data.episodes import Episode, dataset_id, dataset_path, write_dataset
from m3dt_agent.data.kept import Totals, is_kept, number_in, totals_from_metadata, totals_to_metadata
from m3dt_agent.data.validation import PROMPT_EPISODES, read_metadata
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.published.episodes import Listing, PublishedTask
from m3dt_agent.hub.published.formats import FORMATS
from m3dt_agent.hub.published.minari import dataset_folder
from m3dt_agent.system.disk import path_errors, user_path
from m3dt_agent.system.machine import shows_progress
from m3dt_agent.tasks import TASKS, TaskSpec, lookup, resolve

log = logging.getLogger(__name__)

FINGERPRINT_KEY = "m3dt_import"
"""Metadata key of the fingerprint of datasets made here (see `data.kept`)."""
_SHOWN_NAMES = 12


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """One imported dataset. clipped_actions: how many left [-1, 1] and were clipped; `kept`: it was there before this call."""

    task: TaskSpec
    path: Path
    episodes: int
    steps: int
    mean_return: float
    clipped_actions: int
    kept: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """One dataset to be made."""

    found: PublishedTask
    path: Path
    format: str
    fingerprint: str


def import_datasets(
    format: str,  # noqa: A002
    path: Path | str,
    root: Path | str,
    tasks: str | Iterable[str | TaskSpec] | None = None,
    *,
    source: str = "published",
    progress: bool | None = None,
    overwrite: bool = False,
) -> list[ImportSummary]:
    """Imports the published data at `path` into the Minari root `root`, as `m3dt/<task>/<source>-v0`, one dataset per task.

    format: mt160, tdmpc2, prompt-dt, minari or lerobot; where each expects its files is drawn in `published.formats`. tasks:
    names, set names, domains or specs (None: every task found); summaries come in their order. Called again after a kill or
    Ctrl-C, it keeps the datasets it finished. path: for minari also the id of a dataset in Minari's own root. Actions are
    clipped to [-1, 1] and counted. progress: None shows a bar on a terminal.

    Raises:
        UnknownTaskError: a format or task that does not exist.
        ConfigError: format minari or lerobot without exactly one task.
        DatasetError: a task that is not at `path`; with `tasks` None, a name there that is no task's; data that is damaged or
            does not fit its task (file and step named); or a dataset of that name that was made from something else and not
            `overwrite`.
        DiskSpaceError: the disk is full.
        PathError: a file cannot be read, or `root` cannot be written.
    """
    find = lookup(dict(FORMATS), format, "data format")
    wanted = None if tasks is None else resolve([tasks] if isinstance(tasks, str) else tasks)
    path, root = user_path(path), user_path(root)
    with path_errors(path):
        path = (dataset_folder(path) if format == "minari" else path).absolute()
        if not path.exists():
            raise DatasetError(f"{path} does not exist")
        names = _choose(listing := find(path, wanted), path, wanted)
        plans = [_plan(listing.open[name](), format, path, root, source) for name in names]
    kept = {plan.path: is_kept(plan.path, FINGERPRINT_KEY, plan.fingerprint, overwrite=overwrite) for plan in plans}
    with _progress_bar([plan for plan in plans if not kept[plan.path]], progress) as bar:
        return [_kept(plan) if kept[plan.path] else _write(plan, root, source, bar, overwrite=overwrite) for plan in plans]


def _choose(listing: Listing, path: Path, wanted: Sequence[TaskSpec] | None) -> list[str]:
    """The names of the tasks to import."""
    found = [task.name for task in dict.fromkeys((*TASKS, *(wanted or ()))) if task.name in listing.open]
    unknown = _shown(listing.unknown)
    if wanted is None:
        if listing.unknown:
            raise DatasetError(f"{path} holds names that are no task's: {unknown}; name the tasks to import the others")
        if not found:
            raise DatasetError(f"{path} holds no data of any task in this format")
        return found
    if missing := [task.name for task in wanted if task.name not in listing.open]:
        raise DatasetError(
            f"{path} has no data of {_shown(missing)}; it has: {_shown(found)}; names that are no task's: {unknown}"
        )
    if listing.unknown:
        log.warning("%s: left out, no task's: %s", path, unknown)
    return [task.name for task in wanted]


def _shown(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(names[:_SHOWN_NAMES]) or "none") + more


def _plan(found: PublishedTask, format: str, path: Path, root: Path, source: str) -> _Plan:  # noqa: A002
    base = path if path.is_dir() else path.parent
    files = [[file.relative_to(base).as_posix(), file.stat().st_size] for file in found.files]
    values = {
        "format": format,
        "original": found.original,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in found.files),
        "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest(),  # of names and sizes
    }
    return _Plan(found, dataset_path(root, dataset_id(found.task, source)), format, json.dumps(values, sort_keys=True))


@contextlib.contextmanager
def _progress_bar(plans: Sequence[_Plan], progress: bool | None) -> Iterator[tqdm[Any]]:
    counts = [plan.found.n_episodes for plan in plans]
    total = None if None in counts else sum(count or 0 for count in counts)
    with tqdm(total=total, unit="episode", desc="import", disable=not shows_progress(progress)) as bar:
        yield bar


def _write(plan: _Plan, root: Path, source: str, bar: tqdm[Any], *, overwrite: bool) -> ImportSummary:
    metadata: dict[str, str | int | float | bool] = {
        **plan.found.metadata,
        FINGERPRINT_KEY: plan.fingerprint,
        "m3dt_format": plan.format,
        "m3dt_original": plan.found.original,
    }
    write_dataset(root, plan.found.task, source, _episodes(plan.found, metadata, bar), metadata=metadata, replace=overwrite)
    return _summary(plan, metadata, kept=False)


def _episodes(found: PublishedTask, metadata: dict[str, str | int | float | bool], bar: tqdm[Any]) -> Iterator[Episode]:
    """The episodes; what was counted goes into `metadata` after the last."""
    steps = clipped = 0
    returns: list[float] = []
    prompts: list[int] = []
    for index, one in enumerate(found.read()):
        returns.append(one.episode.episode_return)
        steps += one.episode.length
        clipped += one.clipped
        prompts += [index] if one.is_prompt else []
        yield one.episode
        bar.update()
    if prompts:
        metadata[PROMPT_EPISODES] = json.dumps(prompts)
    if returns:
        metadata |= totals_to_metadata(Totals(episodes=len(returns), steps=steps, mean_return=sum(returns) / len(returns)))
    metadata["m3dt_clipped_actions"] = clipped


def _kept(plan: _Plan) -> ImportSummary:
    log.info("%s: kept, it was imported before from the same files", plan.path)
    return _summary(plan, read_metadata(plan.path), kept=True)


def _summary(plan: _Plan, metadata: Mapping[str, Any], *, kept: bool) -> ImportSummary:
    return ImportSummary(
        task=plan.found.task,
        path=plan.path,
        **totals_from_metadata(metadata),
        clipped_actions=int(number_in(metadata, "m3dt_clipped_actions")),
        kept=kept,
    )
