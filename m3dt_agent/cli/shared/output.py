"""What commands print.

stdout   the result: a table or, with --json, one JSON document and nothing else
stderr   everything else: progress, estimates, warnings of simulators, errors

Text is text: names, paths and messages may come from a stranger's file, so nothing in them is markup, and control characters
are shown instead of sent to the terminal. With `NO_COLOR` set, or where the output is no terminal, there are no escape codes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...system.machine import QUIET, is_quiet
from ...system.text import visible, visible_lines


def say(message: str) -> None:
    """Prints a note on stderr for the person watching; with --quiet, nothing."""
    if not is_quiet():
        complain(message)


def complain(message: str) -> None:
    """Prints an error on stderr. If stderr cannot be written to, there is nobody to tell, and nothing happens."""
    with contextlib.suppress(OSError):
        _console(stderr=True).print(Text(visible_lines(message)), soft_wrap=True)


def emit(document: Any, *, as_json: bool, table: RenderableType) -> None:
    """Prints the command's result on stdout: `document` as JSON, where numbers that are none (NaN) are null, or `table`."""
    if as_json:
        print(json.dumps(_without_nan(document), indent=2, allow_nan=False))
    else:
        _console(stderr=False).print(table)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class TextTable(Table):
    """A table of text: a title, columns and cells. None is shown as a dash."""

    def add_row(self, *cells: object, **settings: Any) -> None:
        super().add_row(*map(_cell, cells), **settings)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> TextTable:
    """A table whose first `left` columns are aligned left and the others, numbers, right. Without column names, no header."""
    table = TextTable(title=Text(visible(title)) if title else None, title_justify="left", show_header=any(columns))
    for i, column in enumerate(columns):
        header = Text(visible(column))
        table.add_column(header, justify="left" if i < left else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table


def together(*parts: RenderableType) -> Group:
    """Tables and lines of text, one below the other."""
    return Group(*(Text(visible_lines(part)) if isinstance(part, str) else part for part in parts))


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Sends what libraries and child processes print on stdout inside the block to stderr; stdout is for the result.

    With --quiet it is dropped.
    """
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(open(os.devnull, "w")) if is_quiet() else sys.stderr
        saved = os.dup(1)
        os.dup2(other.fileno() if is_quiet() else 2, 1)
        try:
            with contextlib.redirect_stdout(other):
                yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)


@contextlib.contextmanager
def notes(*, quiet: bool) -> Iterator[None]:
    """Inside the block, log records and warnings are lines of text on stderr. quiet: no progress, notes, warnings.

    What would be printed of ignored exceptions, such as those of half-made HDF5 files and OpenGL contexts, is left out.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter())
    root, before, hooks = logging.getLogger(), os.environ.get(QUIET), (sys.unraisablehook, sys.excepthook)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        leave_out_ignored_errors()
        if quiet:
            os.environ[QUIET] = "1"  # workers inherit it
        if is_quiet():
            handler.setLevel(logging.ERROR)
        yield
    finally:
        sys.unraisablehook, sys.excepthook = hooks
        logging.captureWarnings(False)
        root.removeHandler(handler)
        os.environ.pop(QUIET, None) if before is None else os.environ.update({QUIET: before})


def leave_out_ignored_errors() -> None:
    """Until `notes` ends, nothing is printed of errors that Python ignores, except with M3DT_DEBUG."""
    if not os.environ.get("M3DT_DEBUG"):
        sys.unraisablehook = lambda _: None  # h5py prints with both
        sys.excepthook = lambda *_: None


def size(n_bytes: float) -> str:
    """`n_bytes` in the unit that fits: 12 kB, 3.4 MB, 1.2 GB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def _console(*, stderr: bool) -> Console:
    system: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, color_system=system, highlight=False, markup=False, emoji=False)


def _cell(cell: object) -> Text:
    return Text("-" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else visible_lines(cell))
