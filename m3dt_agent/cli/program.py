"""One run of `m3dt`: its streams, what a failure prints, and its exit code.

    0    done
    1    an error of this package, of the file system or of stdout: one line on stderr (M3DT_DEBUG=1 adds the traceback)
    2    wrong usage: one line on stderr
    130  Ctrl-C
    141  whoever read stdout stopped reading, as with `m3dt tasks | head -1`

A command that a shell started with Ctrl-C ignored, such as a background job of a script, keeps ignoring it.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ..errors import M3DTError, WorkerError
from .app import QUIET_OPTION, app
from .shared.output import complain, notes, say

CONTINUES = {"collect", "train", "grow", "quickstart", "behavior", "push", "pull", "import"}
"""Commands that keep what they finished, and continue from there when run again."""


class OutputError(M3DTError):
    """The result cannot be written to stdout. code: the exit code."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the result cannot be written to stdout: {error.strerror}")
        self.code = 128 + signal.SIGPIPE if error.errno == errno.EPIPE else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `arguments` default to those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    command = [*(word for word in options if word != QUIET_OPTION), *given[len(options) :]]  # it may stand anywhere
    with notes(quiet=QUIET_OPTION in options):
        try:
            code = _run(command)
            sys.stdout.flush()
        except M3DTError as error:
            code = _complain_about(error)
        if code and arguments is None:
            gc.collect()  # what the error held, such as half-made HDF5 files, goes while nothing is said of it
        if code == 130:
            say("interrupted; " + _how_to_continue(command))
    return code


def program() -> int:
    """Runs the command of this process and returns the exit code; the process ends afterwards."""
    if not _own_streams():
        complain("error: stdout is closed, and the result goes there; add >/dev/null if you do not want it")
        return 1
    try:
        return main()
    except KeyboardInterrupt:  # again, while the first one was being answered
        return 130
    finally:
        _end_quietly()


def _run(arguments: list[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        M3DTError: an error of this package, of the file system or of stdout.
    """
    try:
        done = app(arguments, prog_name="m3dt", standalone_mode=False)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, M3DTError) or not hasattr(error, "format_message"):
            raise
        return _explain_usage(error)  # typer's own errors have a method of this name; their classes differ between its versions
    return done if isinstance(done, int) else 0


def _explain_usage(error: Any) -> int:
    message = " ".join(error.format_message().split())
    if message:  # there is none if the help was shown instead
        where = getattr(getattr(error, "ctx", None), "command_path", "m3dt")
        complain(f"error: {message.rstrip('.')}; see `{where} --help`")
    return int(error.exit_code)


def _complain_about(error: M3DTError) -> int:
    """Prints what went wrong and returns the exit code. A worker that only reports that another one failed prints nothing."""
    if os.environ.get("M3DT_DEBUG"):
        traceback.print_exc()
    if isinstance(error, OutputError) and error.code != 1:
        return error.code
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    if rank == "0":
        complain(f"error: {error}")
    elif not isinstance(error, WorkerError):
        complain(f"error in worker {rank}: {error}")
    return 1


def _how_to_continue(arguments: Sequence[str]) -> str:
    groups: list[Any] = [*app.registered_commands, *app.registered_groups]
    names = {command.name for command in groups}
    begin = next((place for place, word in enumerate(arguments) if word in names), len(arguments))  # after options of all
    verbs = [word for word in arguments[begin:] if not word.startswith("-")][:2]
    keeps_rows = verbs[:1] == ["eval"] and any(word.split("=")[0] == "--rows" for word in arguments)
    if keeps_rows or (verbs and (verbs[0] in CONTINUES or (verbs[0] == "data" and CONTINUES.intersection(verbs[1:])))):
        return "run the same command again to continue where it stopped"
    return "nothing was written"


# -- streams -------------------------------------------------------------------------------------------------------------------


class _Stdout(io.FileIO):
    """Descriptor 1, whose errors are told from those of all other files."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise OutputError(error) from error


def _own_streams() -> bool:
    """Makes the three streams safe to use, and says whether there is a stdout.

    A closed one would be the descriptor of the next file that is opened. Characters that stdout's encoding lacks are escaped.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        return False
    sys.stdout.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
        line_buffering=sys.stdout.isatty(),
    )
    return True


def _end_quietly() -> None:
    """Lets the interpreter end without a word: what stdout did not take is dropped, and another Ctrl-C ends it at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.stdout.flush()
    except (M3DTError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
