"""`m3dt`, the command line: its table of commands.

    m3dt tasks                       the 160 tasks and the published sets         (tasks.py)
    m3dt collect                     demonstrations                               (collect.py)
    m3dt behavior, data              behavior policies and datasets               (data.py)
    m3dt train                       the three stages, into a bank                (train.py)
    m3dt grow                        a trained bank gets more tasks               (grow.py)
    m3dt eval                        scores of a bank or a behavior policy        (eval.py)
    m3dt info                        what a bank holds                            (info.py)
    m3dt view                        a page of datasets, a bank or a training     (view.py)
    m3dt play                        one episode of one task                      (play.py)
    m3dt export                      a bank as one file that acts without torch   (export.py)
    m3dt convert                     banks from published weights, and back       (convert.py)
    m3dt push, pull                  banks on the Hugging Face Hub                (hub.py, also `data push`, `data pull`)
    m3dt doctor                      what this machine can do                     (doctor.py)
    m3dt bench                       how fast it is, from a checkout              (bench.py)
    m3dt quickstart                  from nothing to a trained agent              (quickstart.py)

program.py runs a command and says how it ended. Commands import heavy packages only when they run, so that `m3dt --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import M3DTError
from ..system.disk import path_errors
from ..tasks import register_file
from .bench import bench_command
from .collect import collect_command
from .convert import convert_command
from .data import behavior_app, data_app
from .doctor import doctor_command
from .eval import eval_command
from .export import export_command
from .grow import grow_command
from .hub import data_pull_command, data_push_command, pull_command, push_command
from .info import info_command
from .play import play_command
from .quickstart import quickstart_command
from .shared.options import path_option
from .shared.output import leave_out_ignored_errors
from .shared.own_code import own_module
from .tasks import tasks_command
from .train import train_command
from .train.run_file import CommandWithFile
from .view import view_command

QUIET_OPTION = "--quiet"


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Runs a command. Errors of the file system and of connections become errors of this package, which are one line."""
        leave_out_ignored_errors()  # again: typer sets a hook of its own
        try:
            with path_errors("a file of this command"):
                return super().invoke(ctx)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, M3DTError):
                raise
            raise M3DTError(f"a connection was lost ({error}); run the command again") from error


app = typer.Typer(
    name="m3dt",
    cls=_Commands,
    help="One agent for 160 continuous-control tasks: demonstrations, training in three stages, evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("collect")(collect_command)
app.add_typer(behavior_app, name="behavior")
app.add_typer(data_app, name="data")
app.command("train", cls=CommandWithFile)(train_command)
app.command("grow")(grow_command)
app.command("eval")(eval_command)
app.command("play")(play_command)
app.command("info")(info_command)
app.command("view")(view_command)
app.command("convert")(convert_command)
app.command("export")(export_command)
app.command("bench")(bench_command)
app.command("push")(push_command)
app.command("pull")(pull_command)
app.command("tasks")(tasks_command)
app.command("doctor")(doctor_command)
app.command("quickstart")(quickstart_command)
data_app.command("push")(data_push_command)
data_app.command("pull")(data_pull_command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"m3dt {__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    tasks: Annotated[
        list[Path] | None,
        path_option("--tasks", help="A TOML file with tasks of your own; may be given several times. M3DT_TASKS names more."),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="A module of yours that registers environments with Gymnasium, imported first; may be given several times.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option(QUIET_OPTION, help="Print the result and errors only; may stand anywhere in a command.")
    ] = False,
) -> None:
    """Options of every command. `program.main` takes --quiet out, wherever it stands."""
    for name in modules or ():
        own_module(name, "--import")
    for path in tasks or ():
        register_file(path)
