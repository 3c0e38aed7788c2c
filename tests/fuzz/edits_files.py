"""Edits of files and folders: bytes, sizes, names, and what is no file at all.

{"do": "flip", "file", "at", "bits"}            {"do": "cut", "file", "size"}           {"do": "add", "file", "text", "times"}
{"do": "number", "file", "at", "value"}         {"do": "text", "file", "text"}          {"do": "sparse", "file", "size"}
{"do": "json", "file", "edits"}                 {"do": "header", "file", "edits", "length"}   of safetensors
{"do": "special", "file", "kind"}               {"do": "extra", "name", "like"}         a second file of any name
{"do": "twist", "file", "with"}                 {"do": "rehash"}                        bank.json lists what the files now are
{"do": "fill", "file", "at", "value", "times"}  float32 numbers

Offsets and sizes are fractions of the file's size, so that they fit whatever other edits leave. `number` writes 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.edits_json import edit_json, expand

MOST_EDITED = 8_000_000  # bytes; larger files are sparse ones, which another edit made

Edit = dict[str, Any]


def place(folder: Path, name: str) -> Path:
    """The path of a name in the input, which stays inside.

    Raises:
        FileNotFoundError: it would lead out, because an earlier edit put a link there.
    """
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"a recipe names {name!r}")
    if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(folder)):
        raise FileNotFoundError(f"an earlier edit left a link in {name!r}")
    return path


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def is_editable(path: Path) -> bool:
    return is_plain(path) and path.stat().st_size <= MOST_EDITED


def edit_file(folder: Path, secrets: Path, edit: Edit) -> None:
    """Does one edit. An edit of a file that an earlier one replaced by something else does nothing."""
    do = edit["do"]
    if do == "rehash":
        rehash(folder)
        return
    if do == "extra":
        make_extra(folder, edit)
        return
    path = place(folder, edit["file"])
    if do == "special":
        make_special(path, secrets, edit["kind"])
    elif is_editable(path):
        EDITS[do](path, edit)


def flip(path: Path, edit: Edit) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[int(edit["at"] * (len(data) - 1))] ^= edit["bits"]
    path.write_bytes(data)


def cut(path: Path, edit: Edit) -> None:
    os.truncate(path, int(edit["size"] * path.stat().st_size))


def add(path: Path, edit: Edit) -> None:
    with path.open("ab") as file:
        file.write(edit["text"].encode(errors="surrogateescape") * edit["times"])


def number(path: Path, edit: Edit) -> None:
    data = path.read_bytes()
    at = int(edit["at"] * max(len(data) - 8, 0))
    path.write_bytes(data[:at] + (edit["value"] % (1 << 64)).to_bytes(8, "little") + data[at + 8 :])


def fill(path: Path, edit: Edit) -> None:
    """Tensors end where the file does, so the numbers are written at a multiple of 4 from its end."""
    data = path.read_bytes()
    numbers = struct.pack("<f", float(edit["value"])) * edit["times"]
    at = len(data) % 4 + int(edit["at"] * (len(data) // 4)) * 4
    path.write_bytes((data[:at] + numbers + data[at + len(numbers) :])[: len(data)])


def text(path: Path, edit: Edit) -> None:
    path.write_bytes(expand(edit["text"]).encode(errors="surrogatepass"))


def sparse(path: Path, edit: Edit) -> None:
    os.truncate(path, edit["size"])


def json_text(path: Path, edit: Edit) -> None:
    try:
        changed = edit_json(path.read_text(), edit["edits"])
    except (ValueError, RecursionError):  # an earlier edit made it something other than JSON
        return
    path.write_bytes(changed.encode(errors="surrogatepass"))


def header(path: Path, edit: Edit) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        changed = edit_json(data[8 : 8 + length].decode(), edit["edits"]).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return
    says = len(changed) if edit.get("length") is None else edit["length"] % (1 << 64)
    path.write_bytes(says.to_bytes(8, "little") + changed + data[8 + length :])


def twist(path: Path, edit: Edit) -> None:
    other = path.parent / edit["with"]
    if is_editable(other):
        mine = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(mine)


EDITS: dict[str, Callable[[Path, Edit], None]] = {
    "flip": flip,
    "cut": cut,
    "add": add,
    "number": number,
    "fill": fill,
    "text": text,
    "sparse": sparse,
    "json": json_text,
    "header": header,
    "twist": twist,
}


def make_extra(folder: Path, edit: Edit) -> None:
    """A copy of the file `like` under another name, which no file system but this one may allow."""
    path, source = place(folder, edit["name"]), place(folder, edit["like"])
    if is_editable(source):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
        except (OSError, ValueError):  # the name is too long, has a NUL, or a file stands in the place of a folder
            return


SPECIAL = ("pipe", "zero", "loop", "secret", "home", "folder", "missing", "empty", "upwards", "nowhere", "socket")


def make_special(path: Path, secrets: Path, kind: str) -> None:
    """Something else in the place of a file or folder; `secrets` is a folder that nobody may open."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    links = {
        "zero": "/dev/zero",
        "loop": path.name,
        "secret": str(secrets / "key.txt"),
        "home": str(secrets),
        "upwards": "../../..",
        "nowhere": "does/not/exist",
    }
    if kind in links:
        path.symlink_to(links[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, 0o140600)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()


def rehash(folder: Path) -> None:
    """Lists the files of a bank as they are now, as a forger would."""
    manifest = folder / "bank.json"
    if not is_editable(manifest):
        return
    try:
        values = json.loads(manifest.read_text())
        for name, record in values["files"].items():
            path = folder / name
            if is_editable(path):
                content = path.read_bytes()
                record.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # an earlier edit left no manifest
        return
    manifest.write_text(json.dumps(values))
