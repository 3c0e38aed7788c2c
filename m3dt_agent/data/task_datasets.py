"""The packed datasets of several tasks, and which of their episodes are prompts.

Each task keeps its `n_prompts` best-return episodes out of training as prompts. Where episodes were cut at success, the slowest
success has the highest return, so there the fastest successes are the prompts (DESIGN section 4). A dataset that names its
prompt episodes, as published ones do, gives the best of those, and trains on none of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import ConfigError, DatasetError
from ..tasks import TaskSpec, lookup, resolve
from .episodes import find_sources
from .pack import PackedTask, pack_dataset


@dataclass(frozen=True, slots=True, eq=False)
class TaskDatasets:
    """One packed dataset per task, in the order of `tasks`; make it with `TaskDatasets.open`.

    reopen: makes the same again in another process, also on another machine that sees the same folder; picklable. None: they
    were put together otherwise.

    Raises:
        DatasetError: a task with too few episodes to leave any for training, or marked `stop_after_success` without success.
    """

    tasks: tuple[TaskSpec, ...]
    packed: tuple[PackedTask, ...]
    config: DataConfig = field(default_factory=DataConfig)
    reopen: Callable[[], TaskDatasets] | None = None

    def __post_init__(self) -> None:
        if not self.tasks or len(self.tasks) != len(self.packed):
            raise ConfigError(
                f"TaskDatasets needs one dataset per task and at least one; got {len(self.tasks)}, {len(self.packed)}"
            )
        for task, packed in zip(self.tasks, self.packed, strict=True):
            kept = self.config.n_prompts if packed.prompt_episodes is None else len(packed.prompt_episodes)
            if len(packed.returns) <= kept:
                raise DatasetError(
                    f"task {task.name!r} has {len(packed.returns)} episode(s); {kept} are kept as prompts, "
                    f"so training needs at least {kept + 1}"
                )
            if packed.stop_after_success and packed.success is None:
                raise DatasetError(
                    f"task {task.name!r}: the dataset was cut at success but does not say which episodes succeeded"
                )

    @classmethod
    def open(
        cls,
        root: Path | str,
        tasks: str | Iterable[str | TaskSpec],
        source: str | None = None,
        *,
        config: DataConfig | None = None,
        cache: Path | None = None,
    ) -> TaskDatasets:
        """The datasets of `tasks` (names, set names, domains or specs) under the Minari root `root`, packed if not done yet.

        `source` picks one where a task has several; `cache` is where packs are kept (default: `<root>/.packed`).

        Raises:
            UnknownTaskError: a task that does not exist.
            DatasetError: a task without a dataset, with several and no choice, or with one that does not validate.
            DiskSpaceError: no room for a pack.
        """
        specs = resolve([tasks] if isinstance(tasks, str) else tasks)
        paths = [_choose(Path(root), task, source) for task in specs]  # all of them, before the first is packed
        packed = tuple(pack_dataset(path, task, cache) for path, task in zip(paths, specs, strict=True))
        names = [task.name for task in specs]
        reopen = functools.partial(cls.open, Path(root).absolute(), names, source, config=config, cache=cache)
        return cls(specs, packed, config or DataConfig(), reopen)

    def subset(self, names: Iterable[str | TaskSpec]) -> TaskDatasets:
        """The datasets of some of the tasks, in the order given.

        Raises:
            UnknownTaskError: a task that is not among these.
        """
        by_name = {task.name: i for i, task in enumerate(self.tasks)}
        chosen = [lookup(by_name, name if isinstance(name, str) else name.name, "task of these datasets") for name in names]
        return TaskDatasets(tuple(self.tasks[i] for i in chosen), tuple(self.packed[i] for i in chosen), self.config)

    def prompt_episodes(self, i: int) -> list[int]:
        """The episodes of task `i` that are its prompts, best first: highest return, or fastest success in data cut at success.

        Ties go to the earlier episode; failures follow the successes, by return. Where the dataset names its prompt episodes,
        the best of those.
        """
        packed = self.packed[i]
        order = np.argsort(-packed.returns, kind="stable")
        if packed.stop_after_success and packed.success is not None:
            steps = np.where(packed.success, packed.lengths, np.iinfo(np.int64).max)
            order = order[np.argsort(steps[order], kind="stable")]
        if packed.prompt_episodes is not None:
            order = order[np.isin(order, packed.prompt_episodes)]
        return [int(episode) for episode in order[: self.config.n_prompts]]

    def train_episodes(self, i: int) -> list[int]:
        """The episodes of task `i` that are neither its prompts nor named as prompts by the dataset, in order."""
        prompts = {*self.prompt_episodes(i), *(self.packed[i].prompt_episodes or ())}
        return [episode for episode in range(len(self.packed[i].returns)) if episode not in prompts]


def _choose(root: Path, task: TaskSpec, source: str | None) -> Path:
    sources = find_sources(root, task)
    if not sources:
        folder = root / "m3dt"
        others = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        shown = ", ".join(others[:12]) + (", …" if len(others) > 12 else "") if others else "none"
        raise DatasetError(f"no dataset of task {task.name!r} under {root}; tasks with datasets there: {shown}")
    if source is None and len(sources) > 1:
        raise DatasetError(
            f"task {task.name!r} has several datasets under {root}: {', '.join(sources)}; choose one with source="
        )
    if source is not None and source not in sources:
        raise DatasetError(
            f"task {task.name!r} has no dataset from source {source!r} under {root}; it has: {', '.join(sources)}"
        )
    return sources[source] if source is not None else next(iter(sources.values()))
