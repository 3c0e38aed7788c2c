"""Finds out what a path is, and writes its page.

builtin:NAME, a folder with bank.json               a bank, with the curves of its training if it has logs
a folder with m3dt/                                 datasets
a folder with logs/<stage>.csv or cells             a training or a benchmark run
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bank import builtin
from ..config import STAGES
from ..errors import ConfigError
from ..system.disk import path_errors, require_writable, user_path, write_file
from .page import Page, require_plotly
from .run import cells_in, run_page

Kind = Literal["datasets", "bank", "run"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a page is to show besides what is at its path.

    rows: of a bank, files of evaluated episodes. data: of a bank, a Minari root: the router's weights are measured on its
    datasets of the bank's tasks, which are packed if they are not yet. source: only datasets of this source. clips: tasks whose
    episodes are drawn; None: for datasets all, if they are few, for a bank none. progress: whether to show bars; None: only on
    a terminal.
    """

    rows: tuple[Path, ...] = ()
    data: Path | None = None
    source: str | None = None
    clips: tuple[str, ...] | None = None
    progress: bool | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A page that was written. seconds: what it took. notes: what the page says is missing."""

    path: Path
    kind: Kind
    n_bytes: int
    seconds: float
    notes: tuple[str, ...]


def write_page(what: str | Path, to: str | Path | None = None, request: Request | None = None) -> Written:
    """Writes the page of what is at `what`, whole or not at all.

    Args:
        what: a folder with datasets, a bank (a folder, or builtin:NAME), or the folder of a training or a benchmark run.
        to: the page; None: `m3dt-view-NAME.html` in the current folder.

    Raises:
        ConfigError: there is nothing here that a page can show, or `request` asks for what this kind of page has not.
        MissingDependencyError: plotly is not installed.
        M3DTError: what is there is damaged; the message names the file. PathError: it cannot be read, or the page not written.
    """
    began, request = time.monotonic(), request or Request()
    require_plotly()
    kind = kind_of(what)
    _check(kind, request)
    target = Path(default_name(what)) if to is None else user_path(to)
    require_writable(target)
    page = _page(what, kind, request)
    content = page.html().encode()
    with path_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, content)
    return Written(target, kind, len(content), time.monotonic() - began, tuple(page.notes))


def kind_of(what: str | Path) -> Kind:
    """What there is at a path.

    Raises:
        ConfigError: nothing that a page can show; the message names what is valid, and what is one folder further.
        PathError: the path cannot be read.
    """
    if builtin.is_builtin(what):
        return "bank"
    folder = user_path(what)
    with path_errors(folder):
        if not folder.is_dir():
            folder.stat()  # names what is missing
            raise ConfigError(f"{folder} is a file; a page shows {_VALID}")
        found = _kind_of_folder(folder)
        if found is None:
            inside = [path.name for path in sorted(folder.iterdir())[:200] if path.is_dir() and _kind_of_folder(path)]
            hint = f"; here are {', '.join(str(folder / name) for name in inside[:6])}" if inside else ""
            raise ConfigError(f"{folder} is nothing that a page can show: it shows {_VALID}{hint}")
    return found


_VALID = (
    "a folder with datasets (it holds m3dt/), a bank (it holds bank.json; or builtin:NAME), or the folder of a training or a "
    "benchmark run (it holds logs/, or folders with cell.json)"
)


def _kind_of_folder(folder: Path) -> Kind | None:
    if (folder / "bank.json").is_file():
        return "bank"
    if (folder / "m3dt").is_dir():
        return "datasets"
    logs = any((folder / "logs" / f"{stage}.csv").is_file() for stage in STAGES)
    return "run" if logs or cells_in(folder) else None


def _check(kind: Kind, request: Request) -> None:
    given = {"rows": bool(request.rows), "data": request.data is not None, "source": request.source is not None}
    taken = {"bank": ("rows", "data", "source"), "datasets": ("source",), "run": ()}
    if wrong := [name for name, there in given.items() if there and name not in taken[kind]]:
        owner = next(page for page, names in taken.items() if wrong[0] in names)
        raise ConfigError(f"{wrong[0]} goes with the page of {_NAMES[owner]}; this is {_NAMES[kind]}")
    if kind == "run" and request.clips:
        raise ConfigError(f"clips go with the pages of datasets and of a bank; this is {_NAMES[kind]}")


_NAMES = {"bank": "a bank", "datasets": "a folder with datasets", "run": "a training or a benchmark run"}


def default_name(what: str | Path) -> str:
    """The file name of a page whose place nobody named."""
    name = str(what) if builtin.is_builtin(what) else user_path(what).absolute().name
    return f"m3dt-view-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:80].strip('-.') or 'page'}.html"


def _page(what: str | Path, kind: Kind, request: Request) -> Page:
    clips: Sequence[str] | None = request.clips
    if kind == "bank":
        from .bank import bank_page, datasets_of

        bank = builtin.open_bank(what, check="sizes")
        data = None if request.data is None else datasets_of(bank, user_path(request.data), request.source)
        return bank_page(bank, str(what), request.rows, data, clips or (), request.progress)
    if kind == "datasets":
        from .datasets import datasets_page

        return datasets_page(user_path(what), str(what), clips, request.source, request.progress)
    return run_page(user_path(what), str(what))
