"""`m3dt view`: a page of datasets, of a bank or of a training, opened in the browser."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared.options import AsJson, Source, path_argument, path_option
from .shared.output import emit, make_table, quiet_stdout, say, size


def view_command(
    what: Annotated[
        str,
        path_argument(
            metavar="PATH",
            help="A folder with datasets, a bank (a folder, or builtin:NAME), or the folder of a training or a benchmark run.",
        ),
    ],
    to: Annotated[
        Path | None, path_option(help="The page; default: m3dt-view-NAME.html in the current folder.", show_default=False)
    ] = None,
    rows: Annotated[
        list[Path] | None, path_option(help="Of a bank: a file of `m3dt eval --rows`; may be given several times.")
    ] = None,
    data: Annotated[
        Path | None,
        path_option(help="Of a bank: measure the router's weights on the datasets of this root, not on prompts."),
    ] = None,
    source: Source = None,
    clips: Annotated[
        str | None,
        typer.Option(help="Tasks whose episodes are drawn, separated by commas, or none; MUJOCO_GL chooses the renderer."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page; never without a terminal.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write a page that shows datasets, a bank or a training, and open it in the browser.

    The page is one file that needs neither a server nor a network. It finds out itself what PATH is.
    """
    from ..view import Request, write_page

    wanted = None if clips is None else tuple(name.strip() for name in clips.split(",") if name.strip() not in ("", "none"))
    with quiet_stdout():
        made = write_page(what, to, Request(tuple(rows or ()), data, source, wanted))
    for note in made.notes:
        say(note)
    document = {**dataclasses.asdict(made), "path": str(made.path)}
    cells = [("page", made.path), ("shows", made.kind), ("size", size(made.n_bytes)), ("took", f"{made.seconds:.1f} s")]
    emit(document, as_json=as_json, table=make_table("", ("", ""), cells, left=2))
    if open_page and sys.stdout.isatty():
        import webbrowser

        webbrowser.open(made.path.absolute().as_uri())
