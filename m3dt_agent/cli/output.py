"""What commands print.

stdout   the result: a table or, with --json, one JSON document and nothing else
stderr   everything else: progress, estimates, warnings of simulators, errors
"""

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
    """Prints one line on stderr, for the person watching."""
    Console(stderr=True, highlight=False).print(message, soft_wrap=True, markup=False)


def emit(document: Any, *, as_json: bool, table: RenderableType) -> None:
    """Prints the command's result on stdout: `document` as JSON, or `table`."""
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        Console().print(table)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> Table:
    """A table whose first `left` columns are aligned left and the others, numbers, right. None is shown as a dash."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*("-" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row))
    return table


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Sends what libraries and child processes print on stdout inside the block to stderr; stdout is for the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def size(n_bytes: float) -> str:
    """`n_bytes` in the unit that fits: 12 kB, 3.4 MB, 1.2 GB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
