"""`m3dt doctor`: shows what this machine can do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from ..errors import M3DTError
from ..tasks import own_tasks
from .shared.options import AsJson, path_option
from .shared.output import emit, make_table, quiet_stdout, size


def doctor_command(
    folder: Annotated[Path, path_option(help="Folder for datasets and banks, whose free disk space is shown.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Show versions, simulators, your own tasks, rendering, cores, the speed of bfloat16 and free disk space."""
    from ..system.machine import diagnose

    with quiet_stdout():
        found, own = diagnose(folder), states_of_own_tasks()
    table = make_table("", ("", ""), (), left=2)
    table.box, table.pad_edge = None, False
    for name, version in {"python": found.python, "system": found.system, **found.versions}.items():
        table.add_row(name, version or "not installed")
    tasks = {f"own task {name}": state for name, state in own.items()}
    rendering = {f"rendering with {name}": state for name, state in found.rendering.items()}
    for name, state in {**found.simulators, **tasks, **rendering}.items():
        table.add_row(name, state)
    table.add_row("cores", f"{found.cores} usable, torch uses {found.threads} threads")
    table.add_row("GPU", found.cuda or "none that torch can use")
    table.add_row("bfloat16", f"{found.bf16_speed:.1f} times the speed of float32 in matrix products")
    for path, free in found.disk_free.items():
        table.add_row("free disk", f"{size(free)} at {path}")
    emit({**dataclasses.asdict(found), "own_tasks": own, "bf16_speed": found.bf16_speed}, as_json=as_json, table=table)


def states_of_own_tasks() -> dict[str, str]:
    """Task → "ok" if its environment can be made, else why not. "?": a file or a package describes tasks that cannot be."""
    from ..envs.make import make_env

    states = {}
    try:
        for task in own_tasks():
            try:
                make_env(task).close()
                states[task.name] = "ok"
            except Exception as error:  # whatever the code of an environment raises
                states[task.name] = _first_line(error)
    except M3DTError as error:
        states["?"] = _first_line(error)
    return states


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
