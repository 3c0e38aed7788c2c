"""The process that makes inputs and reads them: `python -m fuzz.child BASE`. Lines of JSON in, lines of JSON out.

    imports, templates ──► {"templates": …} ──► fork ─┬─ worker: {"pid"}, then a recipe in, an outcome out, one after the other
                                                      └─ waits; when the worker dies: {"died": status}, and forks again

What is loaded once costs seconds; a new worker costs milliseconds. The worker alone has limits of memory and an audit hook.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz import edits_files, guard, readers, templates
from fuzz.edits_hdf5 import edit_hdf5
from fuzz.edits_pickles import EDITS as PICKLE_EDITS
from fuzz.layout import BOX, HOME, LONGEST_WAIT_S, MORE_MEMORY, MOST_RESIDENT_MB, MOST_WRITTEN, SECRET, TOKEN
from m3dt_agent.errors import M3DTError

EXTRA_READERS = os.environ.get("M3DT_FUZZ_READERS")
"""A module whose READERS are there as well; the tests of this harness bring bad ones."""

Recipe = dict[str, Any]


class Worker:
    """Reads one recipe after the other."""

    def __init__(self, base: Path) -> None:
        self.base, self.box = base, base / BOX
        self.guard = guard.Guard(base, self.box)
        self.readers = dict(readers.READERS) | extra_readers()
        self.waited = 0.0
        time.sleep, self._sleep = self._short_sleep, time.sleep
        guard.limit_memory(MORE_MEMORY)

    def _short_sleep(self, seconds: float) -> None:
        """Notes how long somebody wanted to wait, and hardly waits."""
        self.waited += seconds
        self._sleep(min(seconds, 0.002))

    def outcome(self, recipe: Recipe) -> dict[str, Any]:
        """Makes the input and reads it."""
        self.empty_box()
        make_input(self.base, self.box, recipe)
        forget_hub()
        self.waited = 0.0
        guard.reset_peak()
        start = time.perf_counter()
        self.guard.arm()
        try:
            found = self.read(recipe)
        finally:
            guard.start_clock(0)
            seen = self.guard.disarm()
        found["seconds"] = time.perf_counter() - start
        found["peak_mb"] = guard.peak_mb()
        found["seen"] = [*seen, *self.complaints(found)]
        return found

    def read(self, recipe: Recipe) -> dict[str, Any]:
        guard.start_clock(recipe["limit_s"])
        try:
            value = self.readers[recipe["reader"]](self.box, recipe)
            guard.start_clock(0)
            return {"outcome": "value", "text": value}
        except guard.TooSlowError as error:
            return {"outcome": "slow", "text": f"not done after {recipe['limit_s']:g} s, at {error}"}
        except M3DTError as error:
            guard.start_clock(0)
            found = {"outcome": "error", "text": f"{type(error).__name__}: {error}"[:2000]}
            if believed := guard.no_memory(error):
                found = {"outcome": "memory", "text": f"it asked for memory that a file promised: {believed}"[:2000]}
            return found
        except BaseException as error:
            guard.start_clock(0)
            kind = "memory" if isinstance(error, MemoryError) else "raw"
            return {"outcome": kind, "text": "".join(traceback.format_exception(error))[-2500:]}

    def complaints(self, found: dict[str, Any]) -> Iterator[str]:
        """What the outcome itself shows to be wrong."""
        if found["peak_mb"] > MOST_RESIDENT_MB:
            yield f"memory: {found['peak_mb']:.0f} MB at its peak"
        if self.waited > LONGEST_WAIT_S:
            yield f"waits: {self.waited:.0f} s in all"
        if SECRET.decode() in found["text"] or TOKEN in found["text"]:
            yield "tells: a secret is in the message"
        files = [path for path in (self.box / "out").rglob("*") if path.is_file() and not path.is_symlink()]
        if (written := sum(path.stat().st_blocks * 512 for path in files)) > MOST_WRITTEN:
            yield f"fills: {written / 1e6:.0f} MB were written"
        for path in files:
            if path.stat().st_size < MOST_WRITTEN and SECRET in path.read_bytes():
                yield f"takes: a secret is in {path.relative_to(self.box)}"

    def empty_box(self) -> None:
        shutil.rmtree(self.box, ignore_errors=True)
        for name in ("out", "tmp"):
            (self.box / name).mkdir(parents=True)


def extra_readers() -> dict[str, Callable[[Path, Recipe], str]]:
    if not EXTRA_READERS:
        return {}
    import importlib

    return dict(importlib.import_module(EXTRA_READERS).READERS)


def make_input(base: Path, box: Path, recipe: Recipe) -> None:
    """Copies the template and edits the copy."""
    source = base / "templates" / str(recipe.get("template"))
    if source.is_dir():
        shutil.copytree(source, box / "in")
    for edit in recipe.get("edits", ()):
        with contextlib.suppress(OSError, IndexError):  # an earlier edit left nothing to edit there
            do, file = edit["do"], edits_files.place(box / "in", edit.get("file", ""))
            if do not in ("hdf5", *PICKLE_EDITS):
                edits_files.edit_file(box / "in", base / HOME, edit)
            elif edits_files.is_editable(file):
                edit_hdf5(file, base / HOME, edit["edits"]) if do == "hdf5" else PICKLE_EDITS[do](file, edit)


def warm_up(base: Path) -> None:
    """Reads the sound inputs once, so that what is imported late is not imported by every worker."""
    box = base / BOX
    for reader, names in templates.TEMPLATES.items():
        for name in names if reader != "hub" else ():
            recipe = {"reader": reader, "template": name}
            (box / "out").mkdir(parents=True)
            make_input(base, box, recipe)
            readers.READERS[reader](box, recipe)
            shutil.rmtree(box)


def forget_hub() -> None:
    """Empties what huggingface_hub keeps per process."""
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()


def work(base: Path) -> None:
    """The worker's life."""
    worker = Worker(base)
    say({"pid": os.getpid()})
    for line in lines():
        say(worker.outcome(json.loads(line)))


def lines() -> Iterator[bytes]:
    """Lines of standard input, read byte by byte at their end, so that the next worker finds what this one has not read."""
    buffer = b""
    while data := os.read(0, 65_536):
        buffer += data
        if buffer.endswith(b"\n"):  # the parent sends one line and waits for the answer
            yield buffer
            buffer = b""


def say(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(ANSWERS, data) :]


ANSWERS = 1


def main() -> None:
    """Imports and templates once, then workers as long as the parent sends recipes."""
    global ANSWERS
    base = Path(sys.argv[1])
    ANSWERS = os.dup(1)  # what readers print goes to standard error
    os.dup2(2, 1)
    described = templates.make_templates(base / "templates")
    warm_up(base)
    say({"templates": described})
    while True:
        pid = os.fork()
        if pid == 0:
            try:
                work(base)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return
        say({"died": status})


if __name__ == "__main__":
    main()
