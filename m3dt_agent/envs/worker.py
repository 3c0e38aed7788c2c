"""A worker process, which runs some slots of a `MixedTaskVectorEnv`. It reads commands from standard input and writes replies.

    parent -> worker   ("open", own, tasks, stop_on_success, width), then
                       ("reset", slots, seeds, tasks) | ("step", slots, actions)                                     pickled
    worker -> parent   ("ok", SlotStates of those slots; none for "open") | ("error", traceback)                        pickled

Commands may be sent before earlier ones are answered. They are executed and answered in order.

The worker ends when its input ends, when the parent closes the pipe or dies. It is a plain `python -m` process, because
`multiprocessing` would import the caller's `__main__` again. So scripts need no main guard, notebooks and programs read from
standard input work, and no thread of torch is forked.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import IO, Any

from .. import errors
from ..errors import M3DTError
from ..tasks import TaskSpec
from .make import registrations
from .slots import Slots, SlotStates

_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
_EXIT_SECONDS = 5.0
_PARENT_POLL_SECONDS = 2.0


class Worker:
    """The parent's side of one worker process, which creates and runs one environment per entry of `tasks`.

    The attribute `tasks` is used in messages; the caller updates it when a reset gives a slot another task.
    """

    def __init__(
        self, number: int, tasks: Sequence[TaskSpec], later: Sequence[TaskSpec], stop_on_success: bool, width: int
    ) -> None:
        own = registrations([*tasks, *later])
        own.require_importable()
        self.tasks = list(tasks)
        self._number, self._started = number, False
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self.send("open", own, self.tasks, stop_on_success, width)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, *message: Any) -> None:
        """Sends one command without waiting for its reply.

        Raises:
            M3DTError: the worker is dead.
        """
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._death() from error

    def receive(self) -> SlotStates:
        """Waits for the reply to the oldest unanswered command.

        Raises:
            M3DTError: the worker is dead, or one of its environments raised an error; the message names worker and tasks. What
                the package itself refuses keeps its class.
        """
        assert self._process.stdout is not None
        try:
            kind, content = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError, ValueError) as error:
            raise self._death() from error
        if kind == "error":
            raise M3DTError(f"{self._name()} failed:\n{content}")
        if kind == "refused":
            name, message = content
            raise getattr(errors, name, M3DTError)(f"{self._name()}: {message}")
        assert isinstance(content, SlotStates)
        self._started = True
        return content

    def stop(self) -> None:
        """Closes the worker's input, which makes it end; `join` waits for that."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # the worker is dead; what is left in the buffer is lost
                self._process.stdin.close()

    def join(self) -> None:
        """Waits until the process has ended; kills it after 5 seconds."""
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _name(self) -> str:
        return f"environment worker {self._number} (process {self.pid}, tasks {', '.join(task.name for task in self.tasks)})"

    def _death(self) -> M3DTError:
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return M3DTError(f"{self._name()} closed its pipe")
        if status > 0 and not self._started:
            return M3DTError(
                f"{self._name()} cannot start (exit status {status}; its message is above); workers=0 does without"
            )
        cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return M3DTError(f"{self._name()} died: {cause}")


def serve(commands: IO[bytes], replies: IO[bytes]) -> None:
    """Executes commands until the input ends."""
    slots: Slots | None = None
    while True:
        try:
            name, *arguments = pickle.load(commands)
        except (EOFError, pickle.UnpicklingError):  # UnpicklingError: the parent died in the middle of a command
            break
        try:
            if name == "open":
                own, *arguments = arguments
                own.adopt()
                slots = Slots(*arguments)
                reply: tuple[str, Any] = ("ok", SlotStates.empty(0))
            else:
                reply = ("ok", getattr(slots, name)(*arguments))
        except M3DTError as error:
            reply = ("refused", (type(error).__name__, str(error)))
        except Exception:
            reply = ("error", traceback.format_exc())
        pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()
    if slots is not None:
        slots.close()


def _exit_with_parent(parent: int) -> None:
    # The end of the input is not enough: a process forked by the parent may keep the pipe open after the parent's death.
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(1)


def main() -> None:
    """Serves commands from standard input; what a simulator prints goes to standard error."""
    threading.Thread(target=_exit_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, replies)
    except BrokenPipeError:
        os._exit(1)  # the parent is dead


if __name__ == "__main__":
    main()
