"""Opens the packed datasets of several tasks, and splits each task's episodes into prompts and training episodes.

The prompts of a task are its `n_prompts` episodes of highest return; they are not trained on. In data whose episodes were cut
at success, the slowest success has the highest return, so the fastest successes are the prompts (docs/architecture.md#data).
If a dataset names its prompt episodes, as published ones do, the prompts are the best of those, and none of them is trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import ConfigError, DatasetError
from ..system.disk import path_errors, user_path
from ..tasks import TaskSpec, lookup, resolve
from .episodes import find_sources
from .pack import PackedTask, pack_dataset


@dataclass(frozen=True, slots=True, eq=False)
class TaskDatasets:
    """One packed dataset per task, in the order of `tasks`. `TaskDatasets.open` makes it.

    config: how many prompts, and how statistics are computed.
    few: a task may have so few episodes that all of them are prompts. They show the task (`M3DTAgent.learn_task`), and none is
        left to train on.
    reopen: a picklable function that opens the same datasets in another process, on any machine that sees the same folder; None
        if they were not made by `open`.

    Raises:
        ConfigError: no tasks, or not one dataset per task.
        DatasetError: a task has too few episodes to leave any for training, and not `few`; or its episodes were cut at success
            but the dataset does not say which succeeded.
    """

    tasks: tuple[TaskSpec, ...]
    packed: tuple[PackedTask, ...]
    config: DataConfig = field(default_factory=DataConfig)
    reopen: Callable[[], TaskDatasets] | None = None
    few: bool = False

    def __post_init__(self) -> None:
        if not self.tasks or len(self.tasks) != len(self.packed):
            raise ConfigError(
                f"TaskDatasets needs one dataset per task and at least one; got {len(self.tasks)}, {len(self.packed)}"
            )
        for task, packed in zip(self.tasks, self.packed, strict=True):
            kept = self.config.n_prompts if packed.prompt_episodes is None else len(packed.prompt_episodes)
            if len(packed.returns) <= kept and not self.few:
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
        cache: Path | str | None = None,
        few: bool = False,
    ) -> TaskDatasets:
        """Opens the datasets of `tasks` under the Minari root `root`; packs those that are not packed yet.

        Args:
            root: the Minari root folder.
            tasks: names, set names, domains or specs.
            source: which dataset to use where a task has several.
            config: how many prompts, and how statistics are computed; None: the defaults.
            cache: where packs are stored; None: `<root>/.packed`, or a folder of the user's cache if that cannot be written.
            few: as the class has it.

        Raises:
            UnknownTaskError: a task does not exist.
            DatasetError: a task has no dataset, several and `source` is None, or one that does not validate.
            DiskSpaceError: there is no room for a pack.
            PathError: a folder cannot be read, or packs cannot be written.
        """
        root = user_path(root).absolute()
        specs = resolve([tasks] if isinstance(tasks, str) else tasks)
        paths = [_choose(root, task, source) for task in specs]  # reports a missing one before anything is packed
        packed = tuple(pack_dataset(path, task, cache) for path, task in zip(paths, specs, strict=True))
        names = [task.name for task in specs]
        reopen = functools.partial(cls.open, root, names, source, config=config, cache=cache, few=few)
        return cls(specs, packed, config or DataConfig(), reopen, few)

    def subset(self, names: Iterable[str | TaskSpec]) -> TaskDatasets:
        """The datasets of the named tasks alone, in the order given.

        Raises:
            UnknownTaskError: a task is not among these.
        """
        by_name = {task.name: i for i, task in enumerate(self.tasks)}
        chosen = [lookup(by_name, name if isinstance(name, str) else name.name, "task of these datasets") for name in names]
        tasks, packed = tuple(self.tasks[i] for i in chosen), tuple(self.packed[i] for i in chosen)
        return TaskDatasets(tasks, packed, self.config, few=self.few)

    def prompt_episodes(self, i: int) -> list[int]:
        """Indices of the prompt episodes of task `i`, best first.

        The best episode has the highest return; in data cut at success it is the fastest success, and failures follow the
        successes, by return. Of equal episodes the earlier one comes first. If the dataset names its prompt episodes, only
        those are considered.
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
        """Indices of the training episodes of task `i`, in order: those that are neither its prompts nor named as prompts.

        Raises:
            DatasetError: there are none, as there may be in data opened with `few`.
        """
        prompts = {*self.prompt_episodes(i), *(self.packed[i].prompt_episodes or ())}
        found = [episode for episode in range(len(self.packed[i].returns)) if episode not in prompts]
        if not found:
            raise DatasetError(
                f"task {self.tasks[i].name!r}: all its episodes are prompts, {len(prompts)}; none is left for training"
            )
        return found


def _choose(root: Path, task: TaskSpec, source: str | None) -> Path:
    sources = find_sources(root, task)
    if not sources:
        folder = root / "m3dt"
        with path_errors(folder):
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
