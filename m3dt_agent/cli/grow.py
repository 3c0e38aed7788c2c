"""`m3dt grow`: a trained bank gets new tasks, with experts of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .info import bank_table, describe_bank
from .shared.options import (
    DEFAULT_ROOT,
    AsJson,
    Cache,
    Device,
    Root,
    Source,
    Track,
    choose_tasks,
    complete_tasks,
    path_argument,
)
from .shared.output import emit, quiet_stdout
from .train.settings import given_settings, setting_options, with_setting_options

Grows = Annotated[str, path_argument(metavar="BANK", help="The bank that grows: a folder, builtin:NAME, or an id on the Hub.")]
To = Annotated[Path, path_argument(metavar="TO", help="Folder of the grown bank; BANK stays as it is.")]
NewTasks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK...", help="The new tasks; may be left out to continue what was begun.", autocompletion=complete_tasks
    ),
]
NewExperts = Annotated[int, typer.Option(help="New experts; the tasks are split over them in the order named.")]


@with_setting_options(setting_options(of_stages=False), "Training settings; defaults: those of training.growth_config")
def grow_command(
    bank: Grows,
    to: To,
    names: NewTasks = None,
    root: Root = DEFAULT_ROOT,
    source: Source = None,
    cache: Cache = None,
    experts: NewExperts = 1,
    track: Track = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Add tasks to a trained bank: new experts learn them from their own datasets; what the bank does stays as it is.

    If it is interrupted, run the same command again to continue.
    """
    from ..bank import ExpertBank, is_bank
    from ..bank.builtin import folder_to_write
    from ..data.task_datasets import TaskDatasets
    from ..hub.banks import pull_bank
    from ..system.machine import torch_device
    from ..training import grow, growth_config
    from ..training.tracking.trackers import make_trackers

    given = given_settings(settings)
    config = growth_config(**given) if given else None
    folder, own_device, trackers = folder_to_write(to), torch_device(device), make_trackers(track or ())
    with quiet_stdout():
        grows = pull_bank(bank, check_folder="sizes").bank
        begun = ExpertBank.open(folder, check="sizes") if is_bank(folder) else None
        known = () if begun is None else begun.tasks
        wanted = names or (begun.growths[-1].tasks if begun is not None and begun.growths else ())
        tasks = choose_tasks(list(wanted), all_tasks=False, task_set=None, seed=0, first=known)
        data = TaskDatasets.open(root, tasks, source, config=grows.data_config, cache=cache)
        grown = grow(grows, folder, data, experts=experts, config=config, device=own_device, trackers=trackers)
    document = describe_bank(grown)
    emit(document, as_json=as_json, table=bank_table(document))
