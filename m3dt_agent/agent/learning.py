"""What an agent learns of a task from a few demonstrations, without training: its statistics and prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..bank.adding import AddedTasks, added_tasks
from ..config import DataConfig, ModelConfig
from ..data.demonstrations import demonstrations
from ..data.episodes import Episode
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError
from ..tasks import TaskSpec, resolve


def learned(
    task: str | TaskSpec,
    episodes: Iterable[Episode] | TaskDatasets,
    *,
    known: Sequence[TaskSpec],
    model: ModelConfig,
    data: DataConfig,
) -> AddedTasks:
    """What `episodes` say of one task. known: the tasks that the agent was trained on. model, data: its settings.

    Raises:
        As `M3DTAgent.learn_task`.
    """
    specs = resolve([task], first=episodes.tasks if isinstance(episodes, TaskDatasets) else ())
    if len(specs) != 1:
        raise ConfigError(f"learn_task takes one task; {task!r} means {len(specs)}: call it once for each")
    (spec,) = specs
    if spec.name in {one.name for one in known}:
        raise ConfigError(
            f"the agent was trained on {spec.name!r}; reset({spec.name!r}) acts in it, and reset(prompt=…, statistics=…) with "
            "another prompt"
        )
    found = episodes.subset([spec]) if isinstance(episodes, TaskDatasets) else demonstrations(spec, episodes, data)
    if found.tasks != specs:
        raise ConfigError(f"the datasets hold another task of the name {spec.name!r}: their specs differ")
    return added_tasks(found, model, data)
