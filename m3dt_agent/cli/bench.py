"""`m3dt bench`: runs the performance programs of a checkout, which the installed package does not contain.

The command looks for `benchmarks/perf` in the checkout from which the package was installed with `pip install -e`, then in the
working directory, and runs `python -m benchmarks.perf` there. The package itself never imports `benchmarks`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .shared.options import AsJson


def bench_command(
    programs: Annotated[
        list[str] | None, typer.Argument(help="Programs in benchmarks/perf, like model, startup or bank; default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small inputs and few repetitions, to see whether they run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the parts that take the time, against plain baselines. Needs a checkout, and half an hour on two cores."""
    command = [sys.executable, "-m", "benchmarks.perf", *(programs or ())]
    command += [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]
    done = subprocess.run(command, cwd=find_checkout(Path(__file__).parents[1], Path.cwd()), check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def find_checkout(*folders: Path) -> Path:
    """Returns the first of `folders` that is a checkout of this project.

    Raises:
        ConfigError: none of them is; the message says what to do.
    """
    for folder in folders:
        if (folder / "benchmarks/perf/__main__.py").is_file() and (folder / "m3dt_agent/cli/bench.py").is_file():
            return folder
    raise ConfigError(
        f"the performance programs are in the source repository only, and there is no checkout of it at "
        f"{' or '.join(map(str, folders))}; clone it, run `pip install -e .` in it, and `m3dt bench` again"
    )
