"""`m3dt convert`: three conversions of weights.

published weights ─► bank                        the default
bank ─► files as the authors publish them        --to-published
bank ─► bank with weights of another precision   --storage
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..config import DataConfig
from ..errors import ConfigError
from ..tasks import TaskSpec
from .info import bank_table, describe_bank
from .shared.options import (
    DEFAULT_ROOT,
    AllTasks,
    AsJson,
    Root,
    SetSeed,
    Source,
    TaskNames,
    TaskSet,
    choose_tasks,
    path_argument,
    path_option,
)
from .shared.output import emit, make_table, quiet_stdout, size

if TYPE_CHECKING:
    from ..bank.storage import Storage


def convert_command(
    origin: Annotated[
        str, path_argument(metavar="FROM", help="Folder of published weights; with --to-published or --storage: a bank.")
    ],
    target: Annotated[Path, path_argument(metavar="TO", help="New folder for the bank or, with --to-published, the files.")],
    names: TaskNames = None,
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    root: Root = DEFAULT_ROOT,
    source: Source = None,
    groups: Annotated[Path | None, path_option(help="JSON file with the authors' grouping of tasks.")] = None,
    n_heads: Annotated[int, typer.Option(help="Number of attention heads, which the weights do not show.")] = 8,
    to_published: Annotated[
        bool, typer.Option("--to-published", help="Convert a bank into files that the authors' scripts load.")
    ] = False,
    storage: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Copy a bank and store its weights so; bfloat16 rounds them and takes half the space."),
    ] = None,
    allow_standard_residual: Annotated[
        bool,
        typer.Option(
            "--allow-standard-residual",
            help="Also write experts of residual='standard', which the authors' code computes otherwise.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert the authors' published weights into a bank, or a bank into their files, or a bank into a smaller one.

    For published weights, name the tasks they were trained on. Prompts and statistics come from your datasets of these tasks.
    """
    of_a_bank = "--to-published" if to_published else "--storage" if storage else None
    if to_published and storage:
        raise ConfigError("--to-published and --storage are two conversions; choose one")
    if of_a_bank and (names or all_tasks or task_set or groups):
        raise ConfigError(f"{of_a_bank} takes neither tasks nor --groups: FROM is a bank, which has its own")
    if allow_standard_residual and not to_published:
        raise ConfigError("--allow-standard-residual goes with --to-published")
    if to_published:
        _export(origin, target, allow_standard_residual=allow_standard_residual, as_json=as_json)
        return
    if storage:
        _store(origin, target, storage, as_json=as_json)
        return
    tasks = choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=set_seed)
    _import(Path(origin), target, tasks, root, source, groups=groups, n_heads=n_heads, as_json=as_json)


def _import(
    weights: Path,
    bank: Path,
    tasks: tuple[TaskSpec, ...],
    root: Path,
    source: str | None,
    *,
    groups: Path | None,
    n_heads: int,
    as_json: bool,
) -> None:
    from ..data.task_datasets import TaskDatasets
    from ..hub.convert_weights import bank_from_published

    with quiet_stdout():
        data = TaskDatasets.open(root, tasks, source, config=DataConfig.preset("paper"))
        document = describe_bank(bank_from_published(weights, bank, data, groups=groups, n_heads=n_heads))
    emit(document, as_json=as_json, table=bank_table(document))


def _store(bank: str, target: Path, storage: Storage, *, as_json: bool) -> None:
    from ..bank.builtin import open_bank

    document = describe_bank(open_bank(bank, check="sizes").copy_to(target, storage=storage))
    emit(document, as_json=as_json, table=bank_table(document))


def _export(bank: str, folder: Path, *, allow_standard_residual: bool, as_json: bool) -> None:
    from ..bank.builtin import open_bank
    from ..hub.convert_weights import write_published

    opened = open_bank(bank, check="sizes")
    write_published(opened, folder, allow_standard_residual=allow_standard_residual)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    table = make_table(f"{folder}: bank {bank} as published files", ("file", "size"), ((f, size(n)) for f, n in files.items()))
    emit({"path": str(folder), "content_hash": opened.content_hash, "files": files}, as_json=as_json, table=table)
