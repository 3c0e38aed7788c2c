"""Dataset cards: what a collection of Minari datasets holds and how to load it.

DatasetRow, one per dataset ──► dataset_card ──► README.md: how to load it, totals per domain, one table row per dataset
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import DatasetCardData

from m3dt_agent import tasks as task_table
from m3dt_agent.errors import ConfigError
from m3dt_agent.hub.cards.markdown import PAPER, card, check_names, count, escape, figure_lines, own_task_sections, table
from m3dt_agent.tasks import TaskSpec

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # the Hub's size_categories


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One Minari dataset of a collection.

    id: `m3dt/<task>/<source>-v0`. bytes, sha256: of its HDF5 file. mean_return: undiscounted, over its episodes. mean_score:
    normalized, 0 to 100; None if unknown (Meta-World episodes that do not record success).
    """

    id: str
    task: str
    source: str
    episodes: int
    steps: int
    bytes: int
    mean_return: float
    mean_score: float | None
    sha256: str


def dataset_card(
    repo_id: str,
    datasets: Sequence[DatasetRow],
    *,
    license: str = "apache-2.0",  # noqa: A002
    figure: str | None = None,
) -> str:
    """The text of README.md for a collection of datasets that is published as `repo_id`.

    Args:
        license: one of the Hub's identifiers. figure: path of a picture of the datasets inside the repository.

    Raises:
        ConfigError: no datasets, or an invalid repo id, figure or license.
        UnknownTaskError: a dataset of a task that does not exist.
    """
    check_names(repo_id, figure, license)
    if not datasets:
        raise ConfigError("a dataset card needs at least one dataset")
    specs = {row.task: task_table.get(row.task) for row in datasets}
    groups = task_table.by_group(specs.values())
    of_domain = {domain: [row for row in datasets if row.task in names] for domain, names in groups.items()}
    metadata = DatasetCardData(
        license=license,
        task_categories=["reinforcement-learning"],
        size_categories=[size_category(sum(row.steps for row in datasets))],
        tags=["reinforcement-learning", "offline-reinforcement-learning", "minari", "m3dt", *of_domain],
        pretty_name=repo_id,
        viewer=False,  # the viewer shows tables, and these are episodes in HDF5
    )
    n_tasks = len({row.task for row in datasets})
    introduction = (
        f"Episodes of {count(n_tasks, 'continuous-control task')} for offline reinforcement learning, in "
        f"{count(len(datasets), 'Minari dataset')}: training data of M3DT ({PAPER}), as the package `m3dt-agent` reads it."
    )
    totals = [*(_total(escape(domain), rows) for domain, rows in of_domain.items()), _total("**all**", datasets)]
    sections = [
        f"# {repo_id}",
        introduction,
        *_loading(repo_id, datasets[0]),
        "## What is in it",
        table(("domain", "tasks", "datasets", "episodes", "steps", "size"), totals),
        _LAYOUT,
        "## Datasets",
        "Scores are normalized from 0 to 100. sha256 is the beginning of the HDF5 file's.",
        table(_COLUMNS, [_cells(row, specs[row.task]) for row in datasets], left=2),
        *own_task_sections(
            specs.values(),
            "These tasks are not among the 160 that come with the package. To pull their datasets and to train on them",
        ),
        *figure_lines(figure, "The datasets"),
    ]
    return card(metadata, sections)


def size_category(n: int) -> str:
    """The Hub's name for a size: `n<1K`, `1K<n<10K`, …, `n>1T` (its dataset-card specification)."""
    k = sum(n >= 10 ** (3 + i) for i in range(len(_SIZES)))
    if k in (0, len(_SIZES)):
        return f"n<{_SIZES[0]}" if k == 0 else f"n>{_SIZES[-1]}"
    return f"{_SIZES[k - 1]}<n<{_SIZES[k]}"


_LAYOUT = """\
```
m3dt/namespace_metadata.json
m3dt/<task>/namespace_metadata.json
m3dt/<task>/<source>-v0/data/{metadata.json, main_data.hdf5}      Minari id m3dt/<task>/<source>-v0
```"""


def _loading(repo_id: str, row: DatasetRow) -> list[str]:
    # names may come from a download, so they are written into the code as ASCII literals
    minari = f"""\
```python
import os

import minari

os.environ["MINARI_DATASETS_PATH"] = os.path.abspath("datasets")
dataset = minari.load_dataset({row.id!a})
print(dataset.total_episodes, dataset.total_steps)
```"""
    training = f"""\
```python
from m3dt_agent import TaskDatasets

data = TaskDatasets.open("datasets", tasks=[{row.task!a}], source={row.source!a})
```"""
    warning = (
        "**Do not call `recover_environment()` on datasets you did not make**: it executes what a dataset's `env_spec` names. "
        "Those here name `m3dt-agent`'s own ids, `M3DT/<task>-v0`, or nothing; `m3dt-agent` never reads the field, but makes "
        "the environment of the task's name."
    )
    return [
        "## How to load it",
        f"```console\n$ m3dt data pull {repo_id} --root datasets\n```",
        "Then with [Minari](https://minari.farama.org):",
        minari,
        "Or for training:",
        training,
        warning,
    ]


def _total(name: str, rows: Sequence[DatasetRow]) -> list[str]:
    sums = (len({row.task for row in rows}), len(rows), sum(row.episodes for row in rows), sum(row.steps for row in rows))
    return [name, *(f"{value:,}" for value in sums), _size(sum(row.bytes for row in rows))]


_COLUMNS = ("task", "source", "episodes", "steps", "mean return", "mean score", "size", "sha256")


def _cells(row: DatasetRow, task: TaskSpec) -> list[str]:
    score = "= return" if task.score == "return" else "-" if row.mean_score is None else f"{row.mean_score:.1f}"
    return [
        escape(row.task),
        escape(row.source),
        f"{row.episodes:,}",
        f"{row.steps:,}",
        f"{row.mean_return:,.1f}",
        score,
        _size(row.bytes),
        escape(row.sha256[:12]),
    ]


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
