"""`m3dt doctor`: shows what this machine can do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from .options import AsJson, path_option
from .output import emit, make_table, quiet_stdout, size


def doctor_command(
    folder: Annotated[Path, path_option(help="Folder for datasets and banks, whose free disk space is shown.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Show versions, simulators, rendering, cores, the speed of bfloat16 and free disk space."""
    from ..system.machine import diagnose

    with quiet_stdout():
        found = diagnose(folder)
    table = make_table("", ("", ""), (), left=2)
    table.box, table.pad_edge = None, False
    for name, version in {"python": found.python, "system": found.system, **found.versions}.items():
        table.add_row(name, version or "not installed")
    for name, state in {**found.simulators, **{f"rendering with {k}": v for k, v in found.rendering.items()}}.items():
        table.add_row(name, state)
    table.add_row("cores", f"{found.cores} usable, torch uses {found.threads} threads")
    table.add_row("GPU", found.cuda or "none that torch can use")
    table.add_row("bfloat16", f"{found.bf16_speed:.1f} times the speed of float32 in matrix products")
    for path, free in found.disk_free.items():
        table.add_row("free disk", f"{size(free)} at {path}")
    emit({**dataclasses.asdict(found), "bf16_speed": found.bf16_speed}, as_json=as_json, table=table)
