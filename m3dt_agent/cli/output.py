"""What commands print: one line on stderr, a table or one JSON document on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table


def say(message: str) -> None:
    """One line for the person watching, on stderr."""
    Console(stderr=True, highlight=False).print(message, soft_wrap=True, markup=False)


def emit(document: Any, *, as_json: bool, table: RenderableType) -> None:
    """The command's result on stdout: `document` as JSON, or `table`."""
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        Console().print(table)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> Table:
    """A table whose first `left` columns are text and the rest numbers, right-aligned."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*("-" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row))
    return table


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries and child processes print on stdout to stderr meanwhile, so that stdout holds the result only."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def duration(seconds: float) -> str:
    """`seconds` as a person says it: 45 s, 12 min, 3.5 h, 9.2 days."""
    for size, unit in ((86_400, "days"), (3_600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """`n_bytes` in the unit that fits: 12 kB, 3.4 MB, 1.2 GB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
