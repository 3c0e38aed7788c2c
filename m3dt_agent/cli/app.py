"""`m3dt`, the command line: its table of commands, and what a failure prints and returns.

    m3dt tasks                       the 160 tasks and the published sets         (tasks.py)
    m3dt collect, behavior, data     demonstrations                               (data.py)
    m3dt train                       the three stages, into a bank                (train.py)
    m3dt eval                        scores of a bank or a behavior policy        (eval.py)
    m3dt info                        what a bank holds                            (info.py)
    m3dt play                        one episode of one task                      (play.py)
    m3dt convert                     published weights to a bank, and back        (convert.py)
    m3dt push, pull                  banks and datasets on the Hugging Face Hub   (hub.py)
    m3dt doctor                      what this machine can do                     (doctor.py)
    m3dt bench                       how fast it is, from a checkout              (bench.py)
    m3dt quickstart                  from nothing to a trained agent              (quickstart.py)

Exit codes: 0 done; 1 an error of this package, one line on stderr (M3DT_DEBUG=1 adds the traceback); 2 wrong usage; 130 Ctrl-C.
A command that a shell started with Ctrl-C ignored, such as a background job of a script, keeps ignoring it. Commands import
heavy packages only when they run, so that `m3dt --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from ..errors import M3DTError, WorkerError
from .bench import bench_command
from .collect import collect_command
from .convert import convert_command
from .data import behavior_app, data_app
from .doctor import doctor_command
from .eval import eval_command
from .hub import data_pull_command, data_push_command, pull_command, push_command
from .info import info_command
from .output import say
from .play import play_command
from .quickstart import quickstart_command
from .tasks import tasks_command
from .train import train_command

CONTINUES = {"collect", "train", "quickstart", "behavior", "push", "pull", "import"}
"""Commands that keep what they finished, and continue from there when run again."""

app = typer.Typer(
    name="m3dt",
    help="One agent for 160 continuous-control tasks: demonstrations, training in three stages, evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("collect")(collect_command)
app.add_typer(behavior_app, name="behavior")
app.add_typer(data_app, name="data")
app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("play")(play_command)
app.command("info")(info_command)
app.command("convert")(convert_command)
app.command("bench")(bench_command)
app.command("push")(push_command)
app.command("pull")(pull_command)
app.command("tasks")(tasks_command)
app.command("doctor")(doctor_command)
app.command("quickstart")(quickstart_command)
data_app.command("push")(data_push_command)
data_app.command("pull")(data_pull_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `arguments` default to those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="m3dt")
    except M3DTError as error:
        if os.environ.get("M3DT_DEBUG"):
            traceback.print_exc()
        if (line := _error_line(error)) is not None:
            say(line)
        return 1
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if code == 130:
            say("interrupted; " + _how_to_continue(given))
        return code
    return 0


def _error_line(error: M3DTError) -> str | None:
    """The line to print about an error; None in a worker that is not the first and only reports that another one failed."""
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    if rank == "0":
        return f"error: {error}"
    return None if isinstance(error, WorkerError) else f"error in worker {rank}: {error}"


def _how_to_continue(arguments: Sequence[str]) -> str:
    if arguments and (arguments[0] in CONTINUES or list(arguments[:2]) in (["data", verb] for verb in CONTINUES)):
        return "run the same command again to continue where it stopped"
    return "nothing was written"
