"""Runs every command of `m3dt` with every kind of bad path, in one process whose writes the system really refuses.

    python tests/bad_paths.py FOLDER [KINDS]     prints one JSON line per case: what was run, and what came of it

KINDS: how many kinds of each path are tried; all without it.

`FOLDER` holds what `test_bad_paths.py` made: `bank`, `datasets`, `published`. The process must not be able to ignore
permissions; for the full disk it limits the size of its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASK = "cheetah-vel-3"
BAD = "{bad}"
"""Stands in a command for the bad path."""
NEW_TASK = "cheetah-vel-5"
"""A task that the bank does not have; its datasets are in `{made}/more`."""
GROW = (NEW_TASK, "--steps", "1")
COLLECT = ("collect", TASK, "--episodes", "1", "--workers", "0")
TRAIN = ("train", TASK, "--preset", "tiny", "--steps", "1", "--threads", "1")
PUBLISHED = ("--to-published", "--allow-standard-residual")
EVAL = ("eval", "zero", TASK, "--episodes", "1", "--workers", "0")

INPUT_FOLDER = ("missing", "file for folder", "no permission")
INPUT_FILE = ("missing", "folder for file", "no permission")
OUTPUT_FOLDER = ("file for folder", "file in the way", "read-only", "no permission", "full disk")
OUTPUT_FILE = ("folder for file", "file in the way", "read-only", "no permission")

# command and parameter → what is wrong with the path, and the command; {made} is the folder with what was made
CASES: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("", "tasks"): (INPUT_FILE, ("--tasks", BAD, "tasks")),
    ("collect", "root"): (OUTPUT_FOLDER, (*COLLECT, "--root", BAD)),
    ("collect", "weights"): (INPUT_FILE, (*COLLECT, "--root", "{new}", "--weights", BAD)),
    ("behavior train", "out"): (OUTPUT_FOLDER, ("behavior", "train", "cartpole-balance", "--steps", "10", "--out", BAD)),
    ("data info", "root"): (INPUT_FOLDER, ("data", "info", "--root", BAD)),
    ("data validate", "root"): (INPUT_FOLDER, ("data", "validate", "--root", BAD)),
    ("data pack", "root"): (INPUT_FOLDER, ("data", "pack", "--root", BAD)),
    ("data pack", "cache"): (OUTPUT_FOLDER, ("data", "pack", "--root", "{made}/datasets", "--cache", BAD)),
    ("data task", "path"): (INPUT_FOLDER, ("data", "task", BAD, "own", "--score", "return")),
    ("data task", "to"): (
        OUTPUT_FILE,
        ("data", "task", f"{{made}}/datasets/m3dt/{TASK}/random-v0", "own", "--score", "return", "--to", BAD),
    ),
    ("data import", "path"): (INPUT_FOLDER, ("data", "import", "minari", BAD, TASK, "--root", "{new}")),
    ("data import", "root"): (
        OUTPUT_FOLDER,
        ("data", "import", "minari", f"{{made}}/datasets/m3dt/{TASK}/random-v0", TASK, "--root", BAD),
    ),
    ("data push", "repo"): (OUTPUT_FOLDER, ("data", "push", BAD, "--root", "{made}/datasets")),
    ("data push", "root"): (INPUT_FOLDER, ("data", "push", "{new}", "--root", BAD)),
    ("data push", "token_file"): (INPUT_FILE, ("data", "push", "a/b", "--root", "{made}/datasets", "--token-file", BAD)),
    ("data pull", "repo"): (INPUT_FOLDER, ("data", "pull", BAD, "--root", "{new}")),
    ("data pull", "root"): (OUTPUT_FOLDER, ("data", "pull", "{made}/datasets", "--root", BAD)),
    ("data pull", "token_file"): (INPUT_FILE, ("data", "pull", "a/b", "--root", "{new}", "--token-file", BAD)),
    ("train", "config"): (INPUT_FILE, ("train", "--config", BAD)),
    ("train", "root"): (INPUT_FOLDER, (*TRAIN, "--root", BAD, "--bank", "{new}")),
    ("train", "cache"): (OUTPUT_FOLDER, (*TRAIN, "--root", "{made}/datasets", "--cache", BAD, "--bank", "{new}")),
    ("train", "bank"): (OUTPUT_FOLDER, (*TRAIN, "--root", "{made}/datasets", "--bank", BAD)),
    ("eval", "who"): (INPUT_FOLDER, ("eval", BAD, TASK)),
    ("eval", "rows"): ((*OUTPUT_FILE, "full disk"), (*EVAL, "--rows", BAD)),
    ("eval", "video"): (OUTPUT_FILE, (*EVAL, "--video", BAD)),
    ("eval", "prompt_from"): (
        INPUT_FOLDER,
        ("eval", "{made}/bank", NEW_TASK, "--episodes", "1", "--workers", "0", "--prompt-from", BAD),
    ),
    ("play", "prompt_from"): (INPUT_FOLDER, ("play", NEW_TASK, "--bank", "{made}/bank", "--prompt-from", BAD)),
    ("play", "bank"): (INPUT_FOLDER, ("play", TASK, "--bank", BAD)),
    ("play", "video"): (OUTPUT_FILE, ("play", TASK, "--bank", "{made}/bank", "--video", BAD)),
    ("info", "bank"): (INPUT_FOLDER, ("info", BAD)),
    ("convert", "origin"): (INPUT_FOLDER, ("convert", BAD, "{new}", TASK, "--root", "{made}/datasets")),
    ("convert", "target"): (OUTPUT_FOLDER, ("convert", "{made}/bank", BAD, "--storage", "bfloat16")),
    ("convert", "root"): (INPUT_FOLDER, ("convert", "{made}/published", "{new}", TASK, "--root", BAD)),
    ("convert", "groups"): (
        INPUT_FILE,
        ("convert", "{made}/published", "{new}", TASK, "cheetah-vel-4", "--root", "{made}/datasets", "--groups", BAD),
    ),
    ("grow", "bank"): (INPUT_FOLDER, ("grow", BAD, "{new}", *GROW, "--root", "{made}/more")),
    ("grow", "to"): (OUTPUT_FOLDER, ("grow", "{made}/bank", BAD, *GROW, "--root", "{made}/more")),
    ("grow", "root"): (INPUT_FOLDER, ("grow", "{made}/bank", "{new}", *GROW, "--root", BAD)),
    ("grow", "cache"): (OUTPUT_FOLDER, ("grow", "{made}/bank", "{new}", *GROW, "--root", "{made}/more", "--cache", BAD)),
    ("view", "what"): (INPUT_FOLDER, ("view", BAD, "--to", "{new}.html")),
    ("view", "to"): (OUTPUT_FILE, ("view", "{made}/bank", "--clips", "none", "--to", BAD)),
    ("view", "rows"): (INPUT_FILE, ("view", "{made}/bank", "--clips", "none", "--to", "{new}.html", "--rows", BAD)),
    ("view", "data"): (INPUT_FOLDER, ("view", "{made}/bank", "--clips", "none", "--to", "{new}.html", "--data", BAD)),
    ("export", "bank"): (INPUT_FOLDER, ("export", BAD, TASK, "--to", "{new}.onnx")),
    ("export", "to"): (OUTPUT_FILE, ("export", "{made}/bank", TASK, "--to", BAD)),
    ("push", "bank"): (INPUT_FOLDER, ("push", BAD, "{new}")),
    ("push", "repo"): (OUTPUT_FOLDER, ("push", "{made}/bank", BAD)),
    ("push", "rows"): (INPUT_FILE, ("push", "{made}/bank", "{new}", "--rows", BAD)),
    ("push", "token_file"): (INPUT_FILE, ("push", "{made}/bank", "a/b", "--token-file", BAD)),
    ("pull", "repo"): (INPUT_FOLDER, ("pull", BAD, "{new}")),
    ("pull", "folder"): (OUTPUT_FOLDER, ("pull", "{made}/bank", BAD)),
    ("pull", "token_file"): (INPUT_FILE, ("pull", "a/b", "--token-file", BAD)),
    ("doctor", "folder"): ((), ()),  # it shows the disk of the nearest folder that exists
    ("quickstart", "out"): (OUTPUT_FOLDER, ("quickstart", "--steps", "1,1,1", "--out", BAD)),
}
MORE = {  # other conversions write other files
    ("convert", "target, --to-published"): (OUTPUT_FOLDER, ("convert", "{made}/bank", BAD, *PUBLISHED)),
    ("convert", "target, from published"): (
        OUTPUT_FOLDER,
        ("convert", "{made}/published", BAD, TASK, "cheetah-vel-4", "--root", "{made}/datasets"),
    ),
}
ROOM = {"rows": 64, "": 4096}
"""Bytes for each file on the full disk: small files fit, so that commands get as far as they can."""
NAMES = {"to": "policy.onnx", "video": "film.gif", "rows": "rows.jsonl"}


@dataclass(frozen=True)
class Outcome:
    """What came of one case. bad: the path. changed: hash and size of files that are new, changed, or gone."""

    command: str
    parameter: str
    kind: str
    bad: str
    code: int
    stdout: str
    stderr: str
    changed: dict[str, str]
    seconds: float


def run_all(made: Path, most: int | None) -> Iterator[Outcome]:
    """Runs every case, or the first `most` kinds of each path, in a fresh folder beside what was made."""
    for number, ((command, parameter), (kinds, arguments)) in enumerate(itertools.chain(CASES.items(), MORE.items())):
        for kind in kinds[:most]:
            folder = made / "cases" / f"{number}-{kind.replace(' ', '-')}"
            folder.mkdir(parents=True)
            bad = BUILDERS[kind](folder, NAMES.get(parameter, "name"))
            filled = [word.format(bad=bad, made=made, new=folder / "new") for word in arguments]
            before = contents(folder)
            begun = time.monotonic()
            limit = ROOM.get(parameter, ROOM[""]) if kind == "full disk" else resource.RLIM_INFINITY
            code, out, err = run(filled, limit)
            after = contents(folder)
            changed = {
                name: after.get(name, "gone") for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            }
            yield Outcome(command, parameter, kind, str(bad), code, out, err, changed, round(time.monotonic() - begun, 2))
            unlock(folder)
            shutil.rmtree(folder)


def run(arguments: list[str], limit: int) -> tuple[int, str, str]:
    """Runs the command while no file may grow beyond `limit` bytes: exit code (-1: an exception came out), stdout, stderr."""
    import traceback

    from m3dt_agent.cli import main

    out, err = io.StringIO(), io.StringIO()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["--quiet", *arguments])
    except BaseException:
        return -1, out.getvalue(), err.getvalue() + traceback.format_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return code, out.getvalue(), err.getvalue()


def _file(folder: Path, name: str) -> Path:
    (folder / name).write_text("a file")
    return folder / name


def _folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "kept").write_text("kept")
    return folder / name


def _locked(mode: int) -> Callable[[Path, str], Path]:
    def build(folder: Path, name: str) -> Path:
        parent = _folder(folder, "locked")
        if mode == 0:
            _file(parent, name)
        parent.chmod(mode)
        return parent / name

    return build


def _full(folder: Path, name: str) -> Path:
    return folder / "full" / name


BUILDERS: dict[str, Callable[[Path, str], Path]] = {
    "missing": lambda folder, name: folder / "nowhere" / name,
    "file for folder": _file,
    "folder for file": _folder,
    "file in the way": lambda folder, name: _file(folder, "way") / name,
    "read-only": _locked(0o500),
    "no permission": _locked(0),
    "full disk": _full,
}


def contents(folder: Path) -> dict[str, str]:
    """Every visible file with its hash and size, in locked folders too. What is hidden is for continuing."""
    modes = unlock(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    seen = {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} bytes"
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    for path, mode in modes.items():
        path.chmod(mode)
    return seen


def unlock(folder: Path) -> dict[Path, int]:
    """Opens the locked folders, and says how they were."""
    modes = {path: path.stat().st_mode & 0o777 for path in folder.glob("locked")}
    for path in modes:
        path.chmod(0o700)
    return modes


def outcome(document: dict[str, Any]) -> Outcome:
    return Outcome(**document)


if __name__ == "__main__":
    for found in run_all(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None):
        print(json.dumps(found.__dict__), flush=True)
    os._exit(0)  # whatever HDF5 still holds of the files that could not be written
