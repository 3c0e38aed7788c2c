"""`m3dt bench`: the performance programs of a checkout, which are no part of the installed package.

They live in `benchmarks/perf` of the checkout that the package was installed from with `pip install -e`, or of the working
directory, and run there as `python -m benchmarks.perf`: the package itself never imports `benchmarks`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .options import AsJson


def bench_command(
    programs: Annotated[
        list[str] | None, typer.Argument(help="Names of programs in benchmarks/perf: model, startup, bank, …; default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small and few repetitions: do they run?")] = False,
    as_json: AsJson = False,
) -> None:
    """How fast the hot paths are here, each against a plain baseline. Needs a checkout; half an hour on two cores."""
    command = [sys.executable, "-m", "benchmarks.perf", *(programs or ())]
    command += [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]
    done = subprocess.run(command, cwd=find_checkout(Path(__file__).parents[1], Path.cwd()), check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def find_checkout(*folders: Path) -> Path:
    """The first of `folders` that is a checkout of this project.

    Raises:
        ConfigError: none is; the message says what to do.
    """
    for folder in folders:
        if (folder / "benchmarks/perf/__main__.py").is_file() and (folder / "m3dt_agent/cli/bench.py").is_file():
            return folder
    raise ConfigError(
        f"the performance programs are in the source repository only, and there is no checkout of it at "
        f"{' or '.join(map(str, folders))}; clone it, run `pip install -e .` in it, and `m3dt bench` again"
    )
