"""The program `m3dt`: a module of its own, since importing anything of `m3dt_agent` takes a while, in which Ctrl-C may come."""

import os
import signal
from types import FrameType


def main() -> int:
    """Runs the command line and returns the exit code. From now on, Ctrl-C is exit code 130 without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from m3dt_agent.cli import program

    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return program()


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
