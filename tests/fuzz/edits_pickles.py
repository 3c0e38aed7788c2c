"""Edits of pickles and of archives that hold them: arguments of single opcodes, and whole opcodes put in between.

A pickle is a program. Its opcodes stay in order here; an argument becomes another of its kind (a longer text, a larger or
negative number, another name), or a few opcodes are put before it.

{"do": "argument", "member", "at", "value"}     at: a fraction of the opcodes that have an argument; value: a number or a text
{"do": "insert", "member", "at", "code"}        code: a key of CODES
{"do": "npy", "member", "text"}                 the header of an array in an .npz says something else
{"do": "member", "member", "name" | "size"}     a member of a zip archive has another name, or is as large as this when unpacked

member: a fraction of the archive's members; left out where the file itself is the pickle.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Edit = dict[str, Any]

CODES: dict[str, bytes] = {
    "run a command": b"cposix\nsystem\n(X\x04\x00\x00\x00truetR0",
    "a builtin": b"cbuiltins\neval\n0",
    "a class": b"cnumpy\nmatrix\n0",
    "torch's loader": b"ctorch\nload\n0",
    "a memo far away": b"r\xff\xff\xff\x7f",
    "a long text": b"X\xff\xff\xff\x7f",
    "a long array of bytes": b"\x8e" + struct.pack("<Q", 1 << 40),
    "a long buffer": b"\x96" + struct.pack("<Q", 1 << 40),
    "a long integer": b"\x8b" + struct.pack("<i", 1 << 30),
    "a negative length": b"\x8b" + struct.pack("<i", -5),
    "a frame": b"\x95" + struct.pack("<Q", 1 << 40),
    "nothing on the stack": b"0000",
    "marks": b"(" * 200,
    "deep lists": b"]" * 3000 + b"a" * 2999 + b"0",
    "a stop": b"N.",
    "persistent": b"N\x510",
    "an extension": b"\x82\x01",
    "an unknown opcode": b"\xfe",
    "next buffer": b"\x970",
    "state": b"}b",
    "reduce": b")R",
}


def edit_pickle(data: bytes, edit: Edit) -> bytes:
    """The pickle with one opcode changed, or with some put in between."""
    try:
        parts = list(_parts(data))
    except Exception:  # an earlier edit left something that cannot be taken apart
        return data
    if edit["do"] == "insert":
        at = int(edit["at"] * (len(parts) - 1))
        return b"".join(parts[:at]) + CODES[edit["code"]] + b"".join(parts[at:])
    choices = [i for i, part in enumerate(parts) if len(part) > 1 and part[:1] not in (b"\x80", b"q", b"r", b"h", b"j")]
    if choices:
        i = choices[int(edit["at"] * (len(choices) - 1))]
        parts[i] = _as_argument(parts[i][:1], edit["value"])
    return b"".join(parts)


def _parts(data: bytes) -> Iterator[bytes]:
    """The bytes of each opcode; frames, which count bytes, are left out."""
    found = [(code.name, at) for code, _, at in pickletools.genops(data)]
    ends = [at for _, at in found[1:]] + [len(data)]
    for (name, begin), end in zip(found, ends, strict=True):
        if name != "FRAME":
            yield data[begin:end]


def _as_argument(code: bytes, value: Any) -> bytes:
    """An opcode that pushes `value`, or that names it where `code` names something."""
    if code == b"c":
        module, _, name = str(value).rpartition(".")
        return b"c" + f"{module or 'builtins'}\n{name or 'eval'}\n".encode(errors="surrogatepass").replace(b"\0", b"")
    pushed = pickle.dumps(value, protocol=2)  # \x80\x02 … .
    return pushed[2:-1]


def edit_archive(path: Path, edit: Edit) -> None:
    """Changes one member of a zip archive, or its only pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # an earlier edit left something other than an archive
        return
    if not members:
        return
    pickles = [i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")]
    i = pickles[0] if edit["do"] in ("argument", "insert") and pickles else int(edit["member"] * (len(members) - 1))
    name, content = members[i]
    if edit["do"] in ("argument", "insert"):
        content = edit_pickle(content, edit)
    elif edit["do"] == "npy":
        content = with_npy_header(content, edit["text"])
    elif "name" in edit:
        name = edit["name"]
    else:
        content = bytes(edit["size"])
    members[i] = (name, content)
    made = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if edit["do"] == "member" and "size" in edit else zipfile.ZIP_STORED
    try:
        with zipfile.ZipFile(made, "w", packing) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, packing)
    except (ValueError, UnicodeError):  # no archive can have such a name
        return
    path.write_bytes(made.getvalue())


def with_npy_header(content: bytes, text: str) -> bytes:
    """An array of the .npy format whose header is `text`."""
    if content[:6] != b"\x93NUMPY":
        return content
    length = int.from_bytes(content[8:10], "little")
    said = text.encode("latin1", "replace")[:60_000] + b"\n"
    return content[:8] + len(said).to_bytes(2, "little") + said + content[10 + length :]


EDITS: dict[str, Callable[[Path, Edit], None]] = {
    "pickle": lambda path, edit: void(path.write_bytes(edit_pickle(path.read_bytes(), edit["edit"]))),
    "archive": lambda path, edit: edit_archive(path, edit["edit"]),
}


def void(_: object) -> None:
    """Nothing, of anything."""
