"""Readers that do what no reader may, one fault each: the tests of the harness see whether it notices."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fuzz.layout import HOME
from m3dt_agent.errors import DatasetError

Recipe = dict[str, Any]


def home(box: Path) -> Path:
    return box.parents[3] / HOME


def good(box: Path, _: Recipe) -> str:
    (box / "out" / "made.txt").write_text("fine")
    return "fine"


def named(box: Path, _: Recipe) -> str:
    raise DatasetError("as it should")


def raw(box: Path, _: Recipe) -> str:
    return str(json.loads("{}")["missing"])


def fussy(box: Path, recipe: Recipe) -> str:
    return str([{}[number] for number in recipe["numbers"] if number > 10])


def reads_outside(box: Path, _: Recipe) -> str:
    return str(len((home(box) / "key.txt").read_bytes()))


def reads_in_c(box: Path, _: Recipe) -> str:
    with h5py.File(box / "out" / "linked.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(home(box) / "other.h5"), "numbers")
    with h5py.File(box / "out" / "linked.h5", "r") as file:
        return str(file["x"][0])


def writes_outside(box: Path, _: Recipe) -> str:
    try:
        (home(box) / "notes.txt").write_text("mine now")
    except OSError as error:
        raise DatasetError("a reader may hide it") from error
    return "written"


def removes_through_a_link(box: Path, _: Recipe) -> str:
    (box / "out" / "link").symlink_to(home(box))
    (box / "out" / "link" / "notes.txt").unlink()
    return "removed"


def takes(box: Path, _: Recipe) -> str:
    (box / "out" / "copy.txt").write_bytes((home(box) / "key.txt").read_bytes())
    return "taken"


def hoards(box: Path, _: Recipe) -> str:
    return str(np.ones(3_000_000_000, np.uint8).sum())


def believes(box: Path, _: Recipe) -> str:
    try:
        np.zeros(48_000_000_000, np.uint8)
    except MemoryError as error:
        raise DatasetError(f"it cannot be read: {error}") from error
    return "believed"


def swells(box: Path, _: Recipe) -> str:
    np.ones(980_000_000, np.uint8)
    return "swollen"


def dawdles(box: Path, _: Recipe) -> str:
    while True:
        pass


def blocks(box: Path, _: Recipe) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as a library in C that does not return to Python
    while True:
        pass


def crashes(box: Path, _: Recipe) -> str:
    os.abort()


def runs(box: Path, _: Recipe) -> str:
    return str(subprocess.run(["true"], check=True).returncode)


def calls_home(box: Path, _: Recipe) -> str:
    with socket.create_connection(("192.0.2.1", 80), timeout=1):
        return "called"


def waits(box: Path, _: Recipe) -> str:
    time.sleep(100_000)
    return "waited"


READERS: dict[str, Callable[[Path, Recipe], str]] = {
    name: function for name, function in list(globals().items()) if getattr(function, "__module__", "") == __name__
}
